//! Captures with a real thread and real descriptors; the last ones with a data plane whose TAP is a socket pair.

#![allow(clippy::unwrap_used)]

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command as Program;
use std::time::Instant as Clock;

use super::*;
use crate::network::capture::CaptureProtocol;
use crate::network::config::{EndpointConfig, Mac, Membership, Offloads, PlanV4};
use crate::runtime::control::Supervisor;
use crate::runtime::{Attached, engine};

/// Far above anything that a loaded machine causes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A file that is removed again.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("tapway-capture-{}-{name}", std::process::id())))
    }

    fn open(&self) -> OwnedFd {
        OpenOptions::new().write(true).create(true).truncate(true).open(&self.0).unwrap().into()
    }

    fn length(&self) -> u64 {
        std::fs::metadata(&self.0).unwrap().len()
    }

    /// What the reader everybody has makes of it.
    fn tcpdump(&self) -> Vec<String> {
        let out = Program::new("tcpdump").args(["-n", "-r"]).arg(&self.0).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A frame with a vnet header: UDP over IPv4 to port `port`, `payload` bytes long.
fn udp(port: u16, payload: usize) -> Vec<u8> {
    let mut frame = vec![0; VNET_HDR_LEN];
    frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0]);
    frame.extend((28 + payload as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 100, 192, 0, 2, 1, 0x13, 0x88]);
    frame.extend(port.to_be_bytes());
    frame.extend((8 + payload as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.resize(frame.len() + payload, 0xAB);
    frame
}

fn options(max_bytes: Option<u64>) -> CaptureOptions {
    CaptureOptions { max_bytes, ..CaptureOptions::default() }
}

/// A capture as the data plane has it, whom to wait for, and its counters.
fn taken(fd: OwnedFd, options: &CaptureOptions, ring_bytes: usize) -> (Taken, Arc<Shared>, Writers) {
    let writers = Writers::default();
    let mut taken = Taken::new(writers.clone());
    let made = make(Origin::new(1), fd, options, ring_bytes, vec![writers.enter(1).unwrap()]).unwrap();
    let shared = Arc::clone(&made.capture.shared);
    taken.add(made.capture);
    (taken, shared, writers)
}

#[test]
fn a_file_holds_every_frame_and_its_statistics() {
    let file = Temp::new("whole");
    let (mut taken, shared, writers) = taken(file.open(), &options(None), RING);
    for i in 0..1000 {
        taken.take(if i % 2 == 0 { Direction::FromGuest } else { Direction::ToGuest }, &udp(i, usize::from(i)));
    }
    taken.finish(PATIENCE);
    assert!(writers.wait(Duration::ZERO), "finish has waited for the writer");
    let report = shared.report(1);
    assert_eq!((report.packets, report.dropped, report.end), (1000, 0, Some(End::Stopped)));
    assert_eq!(report.bytes, file.length());
    let lines = file.tcpdump();
    assert_eq!(lines.len(), 1000);
    assert!(lines[999].ends_with("10.0.2.100.5000 > 192.0.2.1.999: UDP, length 999"), "{}", lines[999]);
    let bytes = std::fs::read(&file.0).unwrap();
    let mut statistics = Vec::new();
    pcap::statistics(&mut statistics, Duration::ZERO, 1000, 0);
    let found = &bytes[bytes.len() - statistics.len()..];
    // All but the time.
    assert_eq!((&found[..12], &found[20..]), (&statistics[..12], &statistics[20..]));
}

#[test]
fn the_file_follows_slow_traffic() {
    let file = Temp::new("follow");
    let (mut taken, shared, _writers) = taken(file.open(), &options(None), RING);
    let start = Clock::now();
    let written = |packets: u64| {
        std::thread::sleep(Duration::from_millis(1));
        assert!(start.elapsed() < PATIENCE, "frame {packets} is not in the file");
        shared.packets.load(Ordering::Acquire) >= packets
    };
    let mut now = Instant::ZERO;
    taken.take(Direction::FromGuest, &udp(1, 10));
    assert_eq!(taken.due(), Some(Instant::ZERO), "the first frame is due at once");
    taken.settle(now);
    assert_eq!(taken.due(), None);
    while !written(1) {}
    let mut asked_again = false;
    for packets in 2..=5 {
        // One that comes right behind waits its time; the engine is told when.
        taken.take(Direction::FromGuest, &udp(2, 10));
        taken.settle(now);
        // Unless the one before went long ago; then this one went at once, and so may the next.
        asked_again &= taken.due().is_none();
        assert!(asked_again || taken.due() == Some(now + FOLLOW.into()), "{:?} at {now}", taken.due());
        now += FOLLOW.into();
        taken.settle(now);
        while !written(packets) {
            // The writer may not have given the last chunk back yet; then it is asked again.
            asked_again = true;
            now += FOLLOW.into();
            taken.settle(now);
        }
        assert_eq!(taken.due(), None);
    }
}

#[test]
fn a_reader_that_stalls_costs_frames_and_no_time() {
    let (reader, pipe) = nix::unistd::pipe().unwrap();
    let (mut taken, shared, writers) = taken(pipe, &options(None), 4 * ring::CHUNK);
    let (frame, start) = (udp(1, 1400), Clock::now());
    for turn in 0..2000 {
        for _ in 0..20 {
            taken.take(Direction::ToGuest, &frame);
        }
        taken.settle(Instant::from_millis(turn * 5));
    }
    // 40 000 frames, 57 MB: were each one waited for, this would never end.
    assert!(start.elapsed() < PATIENCE);
    let dropped = shared.report(1).dropped;
    assert!(dropped > 30_000, "only {dropped} frames found the ring full");
    taken.remove(1);
    assert!(!writers.wait(Duration::from_millis(100)), "the writer waits for its reader");
    shared.give_up.store(true, Ordering::Release);
    assert!(writers.wait(PATIENCE), "told to give up it does");
    let report = shared.report(1);
    assert_eq!(report.packets + report.dropped, 40_000, "{report:?}");
    assert_eq!(report.end, Some(End::Stopped));
    // A pipe holds 64 KiB; what was counted is what can be read.
    let mut bytes = Vec::new();
    File::from(reader).read_to_end(&mut bytes).unwrap();
    assert_eq!(report.bytes, bytes.len() as u64);
    let mut header = Vec::new();
    pcap::start(&mut header, crate::network::capture::MAX_SNAP_LENGTH);
    assert_eq!(pcap::whole_packets(&bytes[header.len()..], bytes.len() - header.len()), report.packets);
}

#[test]
fn a_slow_reader_gets_everything_that_fits_the_ring() {
    let (reader, pipe) = nix::unistd::pipe().unwrap();
    let (mut taken, shared, writers) = taken(pipe, &options(None), 4 * ring::CHUNK);
    for i in 0..600 {
        taken.take(Direction::ToGuest, &udp(i, 1400));
    }
    let reader = std::thread::spawn(move || {
        let (mut reader, mut bytes, mut page) = (File::from(reader), Vec::new(), [0; 4096]);
        while let Ok(n @ 1..) = reader.read(&mut page) {
            bytes.extend_from_slice(&page[..n]);
            std::thread::sleep(Duration::from_micros(200));
        }
        bytes
    });
    taken.finish(PATIENCE);
    assert!(writers.wait(Duration::ZERO));
    let file = Temp::new("slow");
    std::fs::write(&file.0, reader.join().unwrap()).unwrap();
    assert_eq!((shared.report(1).packets, file.tcpdump().len()), (600, 600));
}

#[test]
fn a_reader_that_leaves_ends_the_capture_and_nothing_else() {
    let (reader, pipe) = nix::unistd::pipe().unwrap();
    drop(reader);
    let (mut taken, shared, writers) = taken(pipe, &options(None), RING);
    assert!(writers.wait(PATIENCE), "the writer has failed");
    taken.take(Direction::ToGuest, &udp(1, 10));
    taken.settle(Instant::ZERO);
    assert!(taken.is_empty(), "the data plane has let go");
    let report = shared.report(1);
    assert_eq!((report.packets, report.dropped), (0, 1));
    assert!(matches!(&report.end, Some(End::Failed(why)) if why.contains("Broken pipe")), "{report:?}");
}

#[test]
fn the_limit_is_kept_to_the_byte() {
    let frame = udp(1, 1000);
    let block = pcap::packet_len(frame.len() - VNET_HDR_LEN) as u64;
    let mut header = Vec::new();
    pcap::start(&mut header, crate::network::capture::MAX_SNAP_LENGTH);
    let empty = (header.len() + pcap::STATISTICS_LEN) as u64;
    for (max_bytes, packets) in [
        (empty, 0),
        (empty + block - 1, 0),
        (empty + block, 1),
        (empty + 10 * block + 3, 10),
        (1_000_000, (1_000_000 - empty) / block),
    ] {
        let file = Temp::new(&format!("limit-{max_bytes}"));
        let (mut taken, shared, writers) = taken(file.open(), &options(Some(max_bytes)), RING);
        for _ in 0..2000 {
            taken.take(Direction::ToGuest, &frame);
        }
        taken.settle(Instant::ZERO);
        assert!(taken.is_empty(), "it is over");
        assert!(writers.wait(PATIENCE));
        let report = shared.report(1);
        assert_eq!((report.packets, report.dropped, report.end), (packets, 0, Some(End::Limit)), "{max_bytes}");
        assert!(file.length() <= max_bytes && max_bytes - file.length() < block + 4);
        assert_eq!(file.tcpdump().len() as u64, packets);
    }
    let file = Temp::new("limit-less");
    let refused = make(Origin::new(1), file.open(), &options(Some(empty - 1)), RING, vec![]).err().unwrap();
    assert_eq!(
        refused.to_string(),
        format!("max_bytes {} is less than the {empty} bytes of a capture file without frames", empty - 1)
    );
}

/// A process that died within a write leaves half a block behind the position of the file.
#[test]
fn a_file_is_gone_on_with_behind_its_last_whole_block() {
    let file = Temp::new("resumed");
    let fd = file.open();
    let (mut taken, _, writers) = taken(fd.try_clone().unwrap(), &options(None), RING);
    (0..3).for_each(|_| taken.take(Direction::FromGuest, &udp(53, 100)));
    taken.finish(DRAIN);
    assert!(writers.wait(DRAIN));
    let whole = file.length();
    assert_eq!(nix::unistd::lseek(&fd, 0, nix::unistd::Whence::SeekCur), Ok(whole as i64), "all is committed");
    // The begin of a block of 140 bytes, where the position does not move.
    nix::sys::uio::pwrite(&fd, &[6, 0, 0, 0, 140, 0, 0, 0, 1, 2, 3], whole as i64).unwrap();
    let writers = Writers::default();
    let tickets = vec![writers.enter(1).unwrap()];
    let made = make(Origin::resumed(7, 2, whole), fd.try_clone().unwrap(), &options(None), RING, tickets).unwrap();
    let shared = Arc::clone(&made.capture.shared);
    let mut taken = Taken::new(writers.clone());
    taken.add(made.capture);
    (0..2).for_each(|_| taken.take(Direction::ToGuest, &udp(53, 100)));
    taken.finish(DRAIN);
    assert_eq!(file.tcpdump().len(), 5);
    let report = shared.report(7);
    assert_eq!((report.sections, report.packets, report.bytes), (2, 2, file.length()));
    let limit = Some(file.length() + 10);
    let full = make(Origin::resumed(7, 3, file.length()), fd, &options(limit), RING, vec![]).err().unwrap();
    assert!(matches!(full, CaptureError::Full { .. }), "{full}");
}

#[test]
fn several_captures_see_what_their_filters_pass() {
    let (all, some) = (Temp::new("all"), Temp::new("some"));
    let (mut taken, _, writers) = taken(all.open(), &options(None), RING);
    let snap_length = 60.try_into().unwrap();
    let filter = CaptureFilter::new(None, Some(53), Some(CaptureProtocol::Udp)).unwrap();
    let narrow = CaptureOptions { filter, snap_length, max_bytes: None };
    taken.add(make(Origin::new(2), some.open(), &narrow, RING, vec![writers.enter(2).unwrap()]).unwrap().capture);
    for port in [53, 54, 53, 55] {
        taken.take(Direction::FromGuest, &udp(port, 300));
    }
    assert!(taken.remove(2) && !taken.remove(2));
    taken.take(Direction::FromGuest, &udp(53, 300));
    taken.finish(PATIENCE);
    assert_eq!(all.tcpdump().len(), 5);
    let lines = some.tcpdump();
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|line| line.contains("192.0.2.1.53")), "{lines:?}");
    assert!(some.length() < 500, "{} bytes for two frames of 60", some.length());
}

/// A data plane with a socket pair for a TAP; ends when the guest's side is dropped.
struct Bench {
    plane: DataPlane,
    guest: UnixDatagram,
    engine: Option<std::thread::JoinHandle<engine::End>>,
    _exit: OwnedFd,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn new(pcap: Option<OwnedFd>) -> Self {
        let (tap, guest) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        guest.set_read_timeout(Some(PATIENCE)).unwrap();
        let (exit, ours) = std::os::unix::net::UnixStream::pair().unwrap();
        let [subnet, gateway, dns, host] = [0, 2, 3, 100].map(|last| std::net::Ipv4Addr::new(10, 0, 2, last));
        let v4 = PlanV4 { subnet: ipnet::Ipv4Net::new(subnet, 24).unwrap(), gateway, dns, guest: host };
        let endpoint = EndpointConfig {
            id: "0123456789ab".into(),
            mtu: 1500,
            guest_mac: Mac([2, 0, 0, 0, 0, 1]),
            gateway_mac: Mac([2, 0, 0, 0, 0, 2]),
            v4: Some(v4),
            v6: None,
            offloads: Offloads::default(),
            allow_host_loopback: false,
            allow_link_local: false,
            outbound_v4: None,
            outbound_v6: None,
            hostname: "guest".into(),
            dns_search: Vec::new(),
            slirp: None,
        };
        let attached = Attached {
            endpoint,
            tap: tap.into(),
            queues: Vec::new(),
            pcap,
            listeners: Vec::new(),
            dns: crate::runtime::control::Names::default(),
            metrics: None,
            api: None,
            exit: Some(exit.into()),
            membership: Membership::default(),
            faults: crate::network::fault::Rules::default(),
        };
        let supervisor = Supervisor::Caller { host_dns: Box::new(|| None) };
        let (engine, control) = engine::build(attached, supervisor, None).unwrap();
        let engine = std::thread::spawn(move || engine.run().unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { plane: control.plane, guest, engine: Some(engine), _exit: ours.into(), runtime }
    }

    /// Asks for the gateway's MAC and waits for the answer: two frames.
    fn arp(&self) {
        let mut frame = vec![0xFF; 6];
        frame.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend([2, 0, 0, 0, 0, 1, 10, 0, 2, 100, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
        self.guest.send(&frame).unwrap();
        let mut answer = [0; 2048];
        let length = self.guest.recv(&mut answer).unwrap();
        assert_eq!(answer[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 2], "{length} bytes");
    }

    fn start(&self, fd: OwnedFd, options: &CaptureOptions) -> Result<u32, CaptureError> {
        self.runtime.block_on(self.plane.captures().start(&self.plane, fd, options))
    }

    fn stop(&self, id: Option<u32>) -> Result<CaptureReport, CaptureError> {
        self.runtime.block_on(self.plane.captures().stop(&self.plane, id))
    }

    /// Ends the data plane by its exit descriptor.
    fn end(mut self) -> engine::End {
        let engine = self.engine.take().unwrap();
        drop(self);
        engine.join().unwrap()
    }
}

#[test]
fn begun_and_ended_while_traffic_flows() {
    let (bench, file) = (Bench::new(None), Temp::new("midway"));
    bench.arp();
    let id = bench.start(file.open(), &options(None)).unwrap();
    bench.arp();
    bench.arp();
    let report = bench.stop(None).unwrap();
    bench.arp();
    assert_eq!((report.id, report.packets, report.dropped, report.end), (id, 4, 0, Some(End::Stopped)));
    assert_eq!(report.bytes, file.length());
    let lines = file.tcpdump();
    assert_eq!(lines.len(), 4);
    assert!(
        lines[0].contains("ARP, Request who-has 10.0.2.2") && lines[1].contains("ARP, Reply 10.0.2.2"),
        "{lines:?}"
    );
    assert!(bench.plane.captures().list().is_empty());
    assert!(matches!(bench.stop(Some(id)), Err(CaptureError::Unknown(gone)) if gone == id));
    assert!(matches!(bench.stop(None), Err(CaptureError::None)));
    assert_eq!(bench.end(), engine::End::Exit);
}

#[test]
fn the_bound_on_captures_and_which_one_is_meant() {
    let bench = Bench::new(None);
    let files: Vec<_> = (0..=MAX_CAPTURES).map(|i| Temp::new(&format!("bound-{i}"))).collect();
    let ids: Vec<_> = files[1..].iter().map(|file| bench.start(file.open(), &options(None)).unwrap()).collect();
    assert!(matches!(bench.start(files[0].open(), &options(None)), Err(CaptureError::TooMany)));
    let several = bench.stop(None).unwrap_err();
    assert_eq!(several.to_string(), "several captures run (1, 2, 3, 4); name one by its id");
    bench.arp();
    assert_eq!(bench.stop(Some(ids[1])).unwrap().packets, 2);
    // The place is free at once.
    assert_eq!(bench.start(files[0].open(), &options(None)).unwrap(), 5);
    assert_eq!(bench.plane.captures().list().iter().map(|report| report.id).collect::<Vec<_>>(), [1, 3, 4, 5]);
    // Those that nobody stopped are whole at the end all the same.
    bench.arp();
    bench.end();
    assert_eq!(files.iter().map(|file| file.tcpdump().len()).collect::<Vec<_>>(), [2, 4, 2, 4, 4]);
}

#[test]
fn descriptors_that_cannot_be_written_are_refused() {
    let bench = Bench::new(None);
    let null = || File::open("/dev/null").unwrap().into();
    assert!(matches!(bench.start(null(), &options(None)), Err(CaptureError::NotWritable)));
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap().into();
    let error = bench.start(full, &options(None)).unwrap_err();
    assert!(crate::telemetry::chain(&error).contains("No space left on device"), "{error:?}");
    assert!(bench.plane.captures().list().is_empty());
    bench.arp();
    // Neither took a place.
    assert!(bench.plane.captures().requested.wait(PATIENCE));
}

#[test]
fn one_that_ends_by_itself_is_told_of_until_it_is_stopped() {
    let (bench, file) = (Bench::new(None), Temp::new("itself"));
    let id = bench.start(file.open(), &options(Some(600))).unwrap();
    let start = Clock::now();
    while bench.plane.captures().list()[0].end.is_none() {
        assert!(start.elapsed() < PATIENCE);
        bench.arp();
    }
    let report = bench.stop(Some(id)).unwrap();
    assert_eq!((report.end, report.dropped), (Some(End::Limit), 0));
    assert!(report.packets > 2 && report.packets == file.tcpdump().len() as u64);
}

#[test]
fn a_stop_does_not_wait_for_a_reader_that_stalls() {
    let bench = Bench::new(None);
    let (_reader, pipe) = nix::unistd::pipe().unwrap();
    let id = bench.start(pipe, &options(None)).unwrap();
    let start = Clock::now();
    for _ in 0..1000 {
        bench.arp();
    }
    assert!(start.elapsed() < PATIENCE);
    let start = Clock::now();
    let report = bench.stop(Some(id)).unwrap();
    assert!(start.elapsed() < DRAIN * 2 + FOLLOW, "{:?}", start.elapsed());
    assert_eq!((report.packets + report.dropped, report.end.clone()), (2000, Some(End::Stopped)), "{report:?}");
    assert!(report.packets > 500 && report.dropped > 500, "{report:?}");
}

#[test]
fn the_capture_of_a_run_has_the_first_frame_and_is_nobodys_to_stop() {
    let file = Temp::new("run");
    let bench = Bench::new(Some(file.open()));
    bench.arp();
    assert!(matches!(bench.stop(None), Err(CaptureError::None)));
    assert!(matches!(bench.stop(Some(0)), Err(CaptureError::Unknown(0))));
    bench.end();
    assert_eq!(file.tcpdump().len(), 2);
}
