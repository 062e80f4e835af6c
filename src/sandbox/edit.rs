//! Changing a few lines of a file that somebody else writes to as well: the sandbox's /etc/hosts and /etc/resolv.conf.
//!
//! The files lie on a tmpfs in the sandbox; the monitor has a descriptor of each, and edits in place: the file behind a
//! bind mount cannot be replaced. Only lines that are to the letter what tapway wrote are its own ([`replaced`]). All
//! others stay, byte for byte, and in their order; a line that the container has changed is the container's from then on.
//!
//! A reader sees the old text or the new one, mixed only if it reads in that very moment: the new text goes out in one
//! write, filled up with newlines to the old length, and the file is cut to its length behind that.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

/// Largest file that is edited, in bytes. The tmpfs has 1 MiB.
const MAX_SIZE: u64 = 256 * 1024;

/// One file, and what of it is ours.
#[derive(Debug)]
pub struct Edited {
    file: std::fs::File,
    ours: Vec<String>,
}

impl Edited {
    /// An open file (to read and write) in which tapway has written `ours`, among others that it will not touch.
    pub fn new(file: OwnedFd, ours: Vec<String>) -> Self {
        Self { file: file.into(), ours }
    }

    /// Has `wanted` instead of our lines of before. After an error the file is as it was, as far as that can be.
    pub fn set(&mut self, wanted: Vec<String>) -> io::Result<()> {
        if wanted == self.ours {
            return Ok(());
        }
        let len = self.file.metadata()?.len();
        if len > MAX_SIZE {
            return Err(io::Error::other(format!("it has {len} bytes, more than the {MAX_SIZE} that are edited")));
        }
        let mut text = vec![0; len as usize];
        let got = read_all(&self.file, &mut text)?;
        text.truncate(got);
        let new = replaced(&text, &self.ours, &wanted);
        let mut padded = new.clone();
        padded.resize(new.len().max(text.len()), b'\n');
        let written = self.file.write_all_at(&padded, 0).and_then(|()| self.file.set_len(new.len() as u64));
        if let Err(error) = written {
            // What was overwritten is put back; that takes no more room than it had.
            let _ = self.file.write_all_at(&text, 0).and_then(|()| self.file.set_len(text.len() as u64));
            return Err(error);
        }
        self.ours = wanted;
        Ok(())
    }
}

fn read_all(file: &std::fs::File, buf: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buf.len() {
        match file.read_at(&mut buf[got..], got as u64) {
            Ok(0) => break,
            Ok(len) => got += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

/// `text` with the lines `wanted` in place of those that are `ours`: where the first of these is, or at the end.
pub fn replaced(text: &[u8], ours: &[String], wanted: &[String]) -> Vec<u8> {
    let mut new = Vec::with_capacity(text.len());
    // Each of our lines is there once: a second one is somebody else's.
    let mut left: Vec<&str> = ours.iter().map(String::as_str).collect();
    let mut spot = None;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let bare = line.strip_suffix(b"\n").unwrap_or(line);
        match left.iter().position(|ours| ours.as_bytes() == bare) {
            Some(at) => {
                left.swap_remove(at);
                spot.get_or_insert(new.len());
            }
            None => new.extend_from_slice(line),
        }
    }
    let mut lines = Vec::new();
    for line in wanted {
        lines.extend_from_slice(line.as_bytes());
        lines.push(b'\n');
    }
    if spot.is_none() && !lines.is_empty() && new.last().is_some_and(|&byte| byte != b'\n') {
        new.push(b'\n');
    }
    let spot = spot.unwrap_or(new.len());
    // A spot behind a last line without a newline cannot be: ours had followed it.
    new.splice(spot..spot, lines);
    new
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{Read as _, Seek as _, Write as _};

    fn lines(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn edit(text: &str, ours: &[&str], wanted: &[&str]) -> String {
        String::from_utf8(replaced(text.as_bytes(), &lines(ours), &lines(wanted))).unwrap()
    }

    #[test]
    fn only_our_lines_change() {
        assert_eq!(edit("a\nb\nc\n", &["b"], &["x", "y"]), "a\nx\ny\nc\n");
        assert_eq!(edit("a\nb\nc\n", &["b"], &[]), "a\nc\n");
        assert_eq!(edit("a\n", &[], &["x"]), "a\nx\n");
        assert_eq!(edit("a", &[], &["x"]), "a\nx\n");
        assert_eq!(edit("a", &["b"], &[]), "a");
        assert_eq!(edit("", &["b"], &["x"]), "x\n");
        assert_eq!(edit("a\nb", &["b"], &["x"]), "a\nx\n");
    }

    #[test]
    fn what_the_container_changed_is_the_containers() {
        // A line of ours with an alias added, one moved, one doubled.
        assert_eq!(edit("1 a # tapway alias\nz\n", &["1 a # tapway"], &["2 b"]), "1 a # tapway alias\nz\n2 b\n");
        assert_eq!(edit("z\n1\n", &["1", "2"], &["3"]), "z\n3\n");
        assert_eq!(edit("1\n1\n", &["1"], &[]), "1\n");
        let odd = b"\xff\xfe\r\n\n\n1\n#\n".to_vec();
        assert_eq!(replaced(&odd, &lines(&["1"]), &[]), b"\xff\xfe\r\n\n\n#\n");
    }

    #[test]
    fn a_file_is_edited_in_place() {
        let path = std::env::temp_dir().join(format!("tapway-edit-{}", std::process::id()));
        let mut file =
            std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(b"127.0.0.1 localhost\nlong long line of ours\n").unwrap();
        let mut edited = Edited::new(file.try_clone().unwrap().into(), lines(&["long long line of ours"]));
        let mut text = |edited: &mut Edited, wanted: &[&str]| {
            edited.set(lines(wanted)).unwrap();
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(text(&mut edited, &["x"]), "127.0.0.1 localhost\nx\n");
        assert_eq!(text(&mut edited, &[]), "127.0.0.1 localhost\n");
        assert_eq!(text(&mut edited, &["y", "z"]), "127.0.0.1 localhost\ny\nz\n");
    }
}
