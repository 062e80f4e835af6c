//! Job control: a sandbox at a terminal behaves as the command alone would.
//!
//! An interactive bash runs at a pseudo-terminal, and is typed to.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::stage::Stage;

pub struct Terminal {
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
    shell: Child,
}

impl Terminal {
    pub fn new(stage: &Stage) -> Self {
        let pty = nix::pty::openpty(None, None).unwrap();
        let slave = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = stage.as_user("setsid");
        command.args(["-c", "bash", "--norc", "--noprofile", "-i"]).env("PS1", "$ ").env("TERM", "dumb");
        let shell = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
        drop(command);
        drop(pty.slave);
        let keyboard = File::from(pty.master);
        let mut reader = keyboard.try_clone().unwrap();
        let (send, screen) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut bytes) {
                if send.send(bytes[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { keyboard, screen, seen: String::new(), shell }
    }

    pub fn keys(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until `text` is on the screen, and forgets what was before it and it.
    pub fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            match self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen += &String::from_utf8_lossy(&bytes),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("no {text:?} on the screen, but {:?}", self.seen)
                }
            }
        }
    }

    /// Who is in the foreground: a process group. The master's own ioctl asks about the slave.
    pub fn foreground(&self) -> Pid {
        nix::unistd::tcgetpgrp(&self.keyboard).unwrap()
    }

    /// Waits until somebody else than `shell` is in the foreground: a shell prints a job's line before the job has the
    /// terminal, and a ^C that is typed between the two is the shell's.
    pub fn foreground_leaves(&self, shell: Pid) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.foreground() == shell {
            assert!(Instant::now() < deadline, "the job never came to the foreground");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the leader of the foreground is that program: the shell's child ignores ^Z until it has become it, though it has the
    /// terminal by then.
    pub fn foreground_becomes(&self, program: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let name = || std::fs::read_to_string(format!("/proc/{}/comm", self.foreground())).unwrap_or_default();
        while name().trim() != program {
            assert!(Instant::now() < deadline, "in the foreground is {:?}, not {program}", name());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A shell inside, whose prompt is `in$ `, stops a job, goes on with it and interrupts it; then it ends with 7, which
    /// the shell outside sees.
    pub fn job_control_inside(&mut self) {
        self.expect("in$ ");
        let inner = self.foreground();
        self.keys("sleep 60\n");
        self.foreground_becomes("sleep");
        self.keys("\x1a");
        self.expect("Stopped");
        self.expect("in$ ");
        self.keys("fg\n");
        self.expect("sleep 60\r\n");
        self.foreground_leaves(inner);
        self.keys("\x03");
        self.expect("in$ ");
        self.keys("exit 7\n");
        self.expect("exit\r\n");
        self.expect("$ ");
        self.keys("echo code=$?\n");
        self.expect("code=7\r\n");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

#[test]
fn interrupt_stop_and_go_on() {
    let stage = Stage::new();
    let mut terminal = Terminal::new(&stage);
    terminal.expect("$ ");
    let shell = terminal.foreground();
    terminal.keys("\"$TAPWAY\" run sh -c 'echo u\"\"p; exec sleep 60'\n");
    terminal.expect("up\r\n");
    terminal.keys("\x1a");
    terminal.expect("Stopped");
    terminal.expect("$ ");
    terminal.keys("fg\n");
    terminal.expect("sleep 60'\r\n");
    terminal.foreground_leaves(shell);
    terminal.keys("\x03");
    terminal.expect("$ ");
    terminal.keys("echo code=$?\n");
    terminal.expect("code=130\r\n");
}

#[test]
fn a_shell_inside_has_job_control_of_its_own() {
    let stage = Stage::new();
    let mut terminal = Terminal::new(&stage);
    terminal.keys("\"$TAPWAY\" run env PS1=in'$ ' bash --norc --noprofile -i\n");
    terminal.job_control_inside();
}

#[test]
fn a_command_that_stops_itself_is_a_stopped_job() {
    let stage = Stage::new();
    let mut terminal = Terminal::new(&stage);
    terminal.keys("\"$TAPWAY\" run sh -c 'kill -STOP $$; echo wo\"\"ke'\n");
    terminal.expect("Stopped");
    terminal.expect("$ ");
    terminal.keys("fg\n");
    terminal.expect("woke\r\n");
    terminal.expect("$ ");
    terminal.keys("echo code=$?\n");
    terminal.expect("code=0\r\n");
}

#[test]
fn the_terminal_is_read_and_shared_with_a_pipeline() {
    let stage = Stage::new();
    let mut terminal = Terminal::new(&stage);
    terminal.keys("\"$TAPWAY\" run cat | sed 's/^/got /'\n");
    std::thread::sleep(Duration::from_millis(300));
    terminal.keys("hello\n");
    terminal.expect("hello\r\n");
    terminal.keys("\x04");
    terminal.expect("got hello\r\n");
}

#[test]
fn a_background_job_that_reads_the_terminal_stops() {
    let stage = Stage::new();
    let mut terminal = Terminal::new(&stage);
    terminal.keys("\"$TAPWAY\" run cat &\n");
    terminal.expect("$ ");
    std::thread::sleep(Duration::from_millis(300));
    terminal.keys("\n");
    terminal.expect("Stopped");
    terminal.expect("$ ");
    terminal.keys("fg\n");
    terminal.expect("run cat\r\n");
    terminal.keys("hello\n");
    terminal.expect("hello\r\nhello\r\n");
    terminal.keys("\x04");
    terminal.expect("$ ");
    terminal.keys("echo code=$?\n");
    terminal.expect("code=0\r\n");
}

#[test]
fn a_plain_sh_ends_as_it_says() {
    // dash gives the terminal back to the group that it found in the foreground; that group must exist in its PID namespace.
    let stage = Stage::new();
    let mut terminal = Terminal::new(&stage);
    terminal.keys("\"$TAPWAY\" run env PS1=in'$ ' sh -i\n");
    terminal.expect("in$ ");
    terminal.keys("exit 3\n");
    terminal.expect("exit 3\r\n");
    terminal.expect("$ ");
    terminal.keys("echo code=$?\n");
    terminal.expect("code=3\r\n");
}

#[test]
fn a_stopped_job_goes_on_in_the_background_and_comes_back() {
    let stage = Stage::new();
    let mut terminal = Terminal::new(&stage);
    terminal.keys("\"$TAPWAY\" run sh -c 'echo u\"\"p; read line; echo got $line'\n");
    terminal.expect("up\r\n");
    terminal.keys("\x1a");
    terminal.expect("Stopped");
    terminal.expect("$ ");
    // It wants the terminal, which is the shell's: it stops again, and the shell still works.
    terminal.keys("bg\n");
    std::thread::sleep(Duration::from_millis(300));
    terminal.keys("echo still\"\" here\n");
    terminal.expect("still here\r\n");
    terminal.keys("fg\n");
    std::thread::sleep(Duration::from_millis(300));
    terminal.keys("word\n");
    terminal.expect("got word\r\n");
    terminal.keys("echo code=$?\n");
    terminal.expect("code=0\r\n");
}
