//! Domain names in the uncompressed form of DNS (RFC 1035 §3.1), as DHCP and router advertisements carry them.

/// Longest label, bytes (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;
/// Longest name on the wire, length bytes and root included (RFC 1035 §2.3.4).
const MAX_NAME: usize = 255;

/// Appends `name` ("example.net", with or without a final dot) as labels and the root. False, with nothing appended,
/// where it is no name: empty, the root alone, an empty or too long label, too long in all, or not ASCII.
pub fn append(out: &mut Vec<u8>, name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let valid = |label: &str| !label.is_empty() && label.len() <= MAX_LABEL && label.is_ascii();
    // One length byte more than dots, and the root.
    if name.len() + 2 > MAX_NAME || !name.split('.').all(valid) {
        return false;
    }
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.push(0);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let mut out = vec![9];
        assert!(append(&mut out, "example.net"));
        assert_eq!(out, b"\x09\x07example\x03net\x00");
        let mut dotted = Vec::new();
        assert!(append(&mut dotted, "example.net."));
        assert_eq!(dotted, out[1..]);
        assert!(append(&mut out, "lan"));
        assert!(out.ends_with(b"\x00\x03lan\x00"));
    }

    #[test]
    fn limits() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        let mut out = Vec::new();
        assert!(append(&mut out, &longest));
        assert_eq!(out.len(), 255);
        let before = out.clone();
        for name in ["", ".", "a..b", ".a", "a..", &"a".repeat(64), &format!("{longest}a"), "müller.de"] {
            assert!(!append(&mut out, name), "{name:?}");
        }
        assert_eq!(out, before);
    }
}
