//! What a thread is busy with, so that its last words can name it.
//!
//! A panic is a bug of ours, and what it was about is gone when the process is. So the data plane notes, in a cell of its own
//! thread, which endpoint and which flow it turns to, and the head of the frame that it has read: a few stores, no lock and no
//! clock. Nobody reads them but the hook ([`watch`]), which writes one line to the log (message, place, thread, what it was
//! busy with, the frame as hex digits to be played again by `fuzz/`) and ends the process. It ends it itself, on whatever thread and
//! however tapway was built: where panics unwind, one thread would be gone and the others would wait for it.
//!
//! Where somebody keeps account of whose turn it was when a process died (`sandbox::blame`), the hook says it of its own thread
//! ([`keep`], [`serve`]): other threads are at other turns, or at none.
//!
//! Not here: backtraces. A confined process cannot read its own symbols.

use std::cell::Cell;
use std::fmt;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::network::config::{CULPRIT, NOBODYS, Turns};
use crate::stack::arena::Id;
use crate::stack::census::{FlowId, Kind};
use crate::wire::summary::Summary;
use crate::wire::vnet::VNET_HDR_LEN;

/// Bytes of a frame that are kept: vnet header, Ethernet, an IPv6 header, and a TCP header with all its options (10 + 14 + 40 +
/// 60), in whole words.
const HEAD: usize = 128;

/// What a thread does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Work {
    /// Nothing of one endpoint's.
    #[default]
    Other,
    /// What is due of an endpoint, or was asked of it.
    Endpoint,
    /// A frame of its guest's.
    Frame,
    /// One of its flows.
    Flow(Kind, Id),
    /// A published port of its.
    Listener(usize),
}

/// The notes of one thread.
struct Scene {
    work: Cell<Work>,
    slot: Cell<u32>,
    head: Cell<[u8; HEAD]>,
    length: Cell<usize>,
    /// Whose turn it is here, as others see it.
    turn: Cell<Option<&'static AtomicU64>>,
}

thread_local! {
    static SCENE: Scene = const {
        Scene {
            work: Cell::new(Work::Other),
            slot: Cell::new(0),
            head: Cell::new([0; HEAD]),
            length: Cell::new(0),
            turn: Cell::new(None),
        }
    };
}

/// Where the account of turns is kept.
static TURNS: OnceLock<&'static Turns> = OnceLock::new();

/// A panic is noted there from now on; only once in a process.
pub fn keep(turns: &'static Turns) {
    let _ = TURNS.set(turns);
}

/// This thread serves whoever is noted there.
pub fn serve(turn: &'static AtomicU64) {
    SCENE.with(|scene| scene.turn.set(Some(turn)));
}

/// Nothing of one endpoint's from now on.
pub fn other() {
    SCENE.with(|scene| scene.work.set(Work::Other));
}

/// What is due of the endpoint in this slot.
pub fn endpoint(slot: u32) {
    SCENE.with(|scene| {
        scene.slot.set(slot);
        scene.work.set(Work::Endpoint);
    });
}

/// A frame that this endpoint's guest sent, vnet header first.
pub fn frame(slot: u32, frame: &[u8]) {
    SCENE.with(|scene| {
        let mut head = [0; HEAD];
        match frame.first_chunk() {
            Some(first) => head = *first,
            None => head[..frame.len()].copy_from_slice(frame),
        }
        scene.head.set(head);
        scene.length.set(frame.len());
        scene.slot.set(slot);
        scene.work.set(Work::Frame);
    });
}

/// A flow of the endpoint that was named last.
pub fn flow(kind: Kind, id: Id) {
    SCENE.with(|scene| scene.work.set(Work::Flow(kind, id)));
}

/// A published port of the endpoint that was named last.
pub fn listener(number: usize) {
    SCENE.with(|scene| scene.work.set(Work::Listener(number)));
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slot = self.slot.get();
        match self.work.get() {
            Work::Other => write!(f, "nothing of a single endpoint"),
            Work::Endpoint => write!(f, "endpoint {slot}"),
            Work::Flow(kind, id) => write!(f, "flow {} of endpoint {slot}", FlowId { kind, id }),
            Work::Listener(number) => write!(f, "published port {number} of endpoint {slot}"),
            Work::Frame => {
                let (head, length) = (self.head.get(), self.length.get());
                let head = &head[..length.min(HEAD)];
                write!(f, "a frame of {length} bytes from the guest of endpoint {slot}")?;
                let seen = Summary::of(head.get(VNET_HDR_LEN..).unwrap_or_default());
                if let Some((from, to)) = seen.addresses {
                    write!(f, ", {:?} from {from}", seen.kind)?;
                    let (from_port, to_port) = seen.ports.unzip();
                    if let Some(port) = from_port {
                        write!(f, " port {port}")?;
                    }
                    write!(f, " to {to}")?;
                    if let Some(port) = to_port {
                        write!(f, " port {port}")?;
                    }
                }
                f.write_str(": ")?;
                head.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

/// From now on a panic, on whatever thread, tells the log what it was about and ends the process.
pub fn watch() {
    std::panic::set_hook(Box::new(|panic| {
        blame();
        last_words(panic);
        std::process::abort();
    }));
}

fn blame() {
    let Some(turns) = TURNS.get() else { return };
    let turn = SCENE.try_with(|scene| scene.turn.get().map_or(0, |turn| turn.load(Ordering::Relaxed)));
    let mark = turn.ok().filter(|&mark| mark != 0).unwrap_or(NOBODYS);
    // The first to fall.
    let _ = turns[CULPRIT].compare_exchange(0, mark, Ordering::Relaxed, Ordering::Relaxed);
}

fn last_words(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    // One line: of values the formatter sees to that, of the text it does not.
    let message = panic.payload_as_str().unwrap_or("no message").replace('\n', "\\n");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    // The cell of a thread that is on its way out is gone.
    let work = SCENE.try_with(ToString::to_string).unwrap_or_default();
    tracing::error!(
        thread = thread.name().unwrap_or("?"),
        place,
        "this is a bug of tapway, and the end of this network process: {message}; it was busy with {work}"
    );
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use crate::network::config::{mark, sandbox_of};

    const CHILD: &str = "TAPWAY_TEST_SCENE";
    const TURNS_AT: &str = "TAPWAY_TEST_TURNS";

    /// What a child of this test does with `act` set: it never gets beyond the panic unless the hook is broken.
    fn child(act: &str) {
        crate::telemetry::init(0, crate::telemetry::LogFormat::Text);
        watch();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(std::env::var(TURNS_AT).unwrap()).unwrap();
        let turns: &Turns = crate::sys::memory::shared_words(Some(&file)).unwrap();
        keep(turns);
        // Two lanes, each at somebody's turn; this thread is the second.
        turns[0].store(mark("00000000000a"), Ordering::Relaxed);
        turns[1].store(mark("00000000000b"), Ordering::Relaxed);
        serve(&turns[1]);
        endpoint(3);
        match act {
            "flow" => flow(Kind::Tcp, Id { index: 7, generation: 2 }),
            "frame" => {
                let mut bytes = vec![0; 10];
                bytes.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
                bytes.extend([10, 0, 2, 100, 192, 0, 2, 7, 0x9c, 0x40, 0, 53, 0, 8, 0, 0]);
                frame(5, &bytes);
            }
            // On another thread, whose end the first would not notice.
            _ => {
                let thread = std::thread::Builder::new().name("control".into()).spawn(|| panic!("no\nmore"));
                thread.unwrap().join().unwrap_err();
                std::thread::sleep(Duration::from_mins(1));
            }
        }
        let lengths = [1_u8];
        assert!(lengths[std::hint::black_box(1)] > 0, "beyond the end of a list");
    }

    /// The log, and whose turn it is said to have been.
    fn told(act: &str) -> (String, Option<String>) {
        let name = "runtime::scene::tests::last_words_name_the_flow_and_the_process_ends";
        let begun = Instant::now();
        let path = std::env::temp_dir().join(format!("tapway-scene-{}-{act}", std::process::id()));
        std::fs::write(&path, [0; size_of::<Turns>()]).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, act)
            .env(TURNS_AT, &path)
            .env_remove(crate::telemetry::ENV)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.signal(), Some(nix::libc::SIGABRT), "{act}: {:?} {text}", output.status);
        assert!(begun.elapsed() < Duration::from_secs(30), "{act}: half of it lived on");
        let turns = std::fs::read(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        let culprit = u64::from_ne_bytes(turns[8 * CULPRIT..].try_into().unwrap());
        assert!(culprit != 0, "{act}: nothing is noted");
        (text, sandbox_of(culprit))
    }

    #[test]
    fn last_words_name_the_flow_and_the_process_ends() {
        if let Ok(act) = std::env::var(CHILD) {
            return child(&act);
        }
        let (flow, whose) = told("flow");
        assert_eq!(whose.as_deref(), Some("00000000000b"));
        assert!(flow.contains("busy with flow tcp-7-2 of endpoint 3"), "{flow}");
        assert!(flow.contains("index out of bounds") && flow.contains("src/runtime/scene.rs:"), "{flow}");
        let (frame, _) = told("frame");
        assert!(frame.contains("a frame of 52 bytes from the guest of endpoint 5"), "{frame}");
        assert!(frame.contains("from 10.0.2.100 port 40000 to 192.0.2.7 port 53: 0000"), "{frame}");
        let (thread, whose) = told("thread");
        assert_eq!(whose, None, "of a thread that serves nobody");
        assert!(thread.contains("thread=\"control\"") && thread.contains("nothing of a single endpoint"), "{thread}");
        // One line, whatever the message has.
        assert!(thread.contains("no\\nmore"), "{thread}");
    }
}
