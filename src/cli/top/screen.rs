//! The terminal while `tapway top` has it: its other screen, no cursor, keys as they are pressed, signals as a descriptor.
//!
//! Dropping a [`Screen`] puts everything back. Escape sequences are those of ECMA-48 and xterm's private modes 1049 and 25,
//! which every terminal of today has.

use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};

use super::Woken;

/// Other screen, cursor hidden.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// Cursor shown, first screen.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// Ctrl-C and Ctrl-D as bytes.
const CONTROL: [u8; 2] = [3, 4];

/// The terminal, taken.
pub struct Screen {
    /// What the keyboard was, where stdin is one.
    keyboard: Option<Termios>,
    stdin: io::Stdin,
    signals: SignalFd,
}

impl Screen {
    /// Takes it.
    pub fn open() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGWINCH] {
            set.add(signal);
        }
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let stdin = io::stdin();
        let keyboard = if stdin.is_terminal() { tcgetattr(&stdin).ok() } else { None };
        if let Some(before) = &keyboard {
            let mut raw = before.clone();
            // Only input changes: what is printed keeps its line ends.
            raw.local_flags &= !(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG | LocalFlags::IEXTEN);
            // read(2) returns at once, with what there is.
            raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 0;
            raw.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
            tcsetattr(&stdin, SetArg::TCSADRAIN, &raw)?;
        }
        let screen = Self { keyboard, stdin, signals };
        write(ENTER)?;
        Ok(screen)
    }

    /// Columns and rows.
    pub fn size(&self) -> (usize, usize) {
        let size = terminal_size::terminal_size_of(io::stdout());
        size.map_or((80, 24), |(width, height)| (usize::from(width.0), usize::from(height.0)))
    }

    /// Draws over what was there.
    pub fn show(&mut self, lines: &[String]) -> io::Result<()> {
        write(&paint(lines))
    }

    /// What to wait on.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let keyboard = self.keyboard.as_ref().map(|_| self.stdin.as_fd());
        std::iter::once(self.signals.as_fd()).chain(keyboard)
    }

    /// What was pressed or signalled.
    pub fn read(&mut self) -> Woken {
        let mut woken = Woken::Other;
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo == Signal::SIGWINCH as u32 {
                woken = Woken::Redraw;
            } else {
                return Woken::Quit;
            }
        }
        if self.keyboard.is_some() {
            let mut keys = [0; 64];
            // With VMIN 0 nothing pressed reads as an end; a terminal that is gone is SIGHUP's business.
            let n = nix::unistd::read(&self.stdin, &mut keys).unwrap_or(0);
            if keys[..n].iter().any(|key| b"qQ".contains(key) || CONTROL.contains(key)) {
                return Woken::Quit;
            }
        }
        woken
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write(LEAVE);
        if let Some(before) = &self.keyboard {
            let _ = tcsetattr(&self.stdin, SetArg::TCSADRAIN, before);
        }
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Lines from the top left corner, each clearing what is behind it, and the rest of the screen.
fn paint(lines: &[String]) -> String {
    let mut text = "\x1b[H".to_owned();
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            text.push_str("\r\n");
        }
        text.push_str(line);
        text.push_str("\x1b[K");
    }
    text.push_str("\x1b[J");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_replace_what_was_there() {
        assert_eq!(paint(&["a".to_owned(), "b".to_owned()]), "\x1b[Ha\x1b[K\r\nb\x1b[K\x1b[J");
        assert_eq!(paint(&[]), "\x1b[H\x1b[J");
    }
}
