//! What every request is: `{"execute": VERB, "arguments": {…}}`.
//!
//! Bytes in, values out, no I/O. How strict to be beyond JSON is the verb's business: the three of slirp4netns ignore what
//! they do not know, all others refuse it. A request may come in pieces, so reading it has three results: not all there yet, whole,
//! and never to be one. What slirp4netns's reader (parson) takes is taken: a byte order mark before the value, anything
//! behind it, arguments that are missing or no object (then there are none), keys that nobody asked for. A NUL ends the
//! input. What it refuses is refused: a key twice in one object, at any depth, comments, unknown literals.
//!
//! Stricter than that program, on purpose: text is UTF-8, a number has digits behind its point, a NUL within a string
//! does not end it, and values nest at most 127 deep (the bound of serde_json).

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// U+FEFF in UTF-8.
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The verb.
    pub execute: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
    /// There are arguments, but they are no object.
    pub odd_arguments: bool,
    /// Another key than these two.
    pub unknown: Option<String>,
}

/// Why it is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvelopeFault {
    /// Not JSON.
    Parse,
    /// JSON, but no object.
    NotObject,
    /// No verb, or one that is no string.
    NoExecute,
}

/// Reads the request at the start of `input`; None if it is not whole yet. `ended`: no more will come.
pub fn read(input: &[u8], ended: bool) -> Option<Result<Envelope, EnvelopeFault>> {
    let value = match first_value(input, ended)? {
        Ok(Value::Object(object)) => object,
        Ok(_) => return Some(Err(EnvelopeFault::NotObject)),
        Err(fault) => return Some(Err(fault)),
    };
    let mut value = value;
    let Some(Value::String(execute)) = value.remove("execute") else {
        return Some(Err(EnvelopeFault::NoExecute));
    };
    let (arguments, odd_arguments) = match value.remove("arguments") {
        Some(Value::Object(arguments)) => (arguments, false),
        other => (Map::new(), other.is_some()),
    };
    let unknown = value.into_iter().next().map(|(key, _)| key);
    Some(Ok(Envelope { execute, arguments, odd_arguments, unknown }))
}

/// The first JSON value of `input`; what follows it is not looked at.
fn first_value(input: &[u8], ended: bool) -> Option<Result<Value, EnvelopeFault>> {
    let end = input.iter().position(|&byte| byte == 0);
    let ended = ended || end.is_some();
    let text = &input[..end.unwrap_or(input.len())];
    let incomplete = || if ended { Some(Err(EnvelopeFault::Parse)) } else { None };
    let text = match text.strip_prefix(&BYTE_ORDER_MARK) {
        Some(rest) => rest,
        None if !text.is_empty() && BYTE_ORDER_MARK.starts_with(text) => return incomplete(),
        None => text,
    };
    let mut reader = serde_json::Deserializer::from_slice(text);
    match Strict::deserialize(&mut reader) {
        Ok(Strict(value)) => Some(Ok(value)),
        Err(error) if error.is_eof() => incomplete(),
        Err(_) => Some(Err(EnvelopeFault::Parse)),
    }
}

/// A value none of whose objects has a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let Strict(value) = entries.next_value()?;
            if all.contains_key(&key) {
                return Err(A::Error::custom("a key twice"));
            }
            all.insert(key, value);
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[u8] = br#"{"execute":"list_hostfwd"}"#;

    fn verb(input: impl AsRef<[u8]>) -> Result<String, EnvelopeFault> {
        read(input.as_ref(), true).expect("ended").map(|envelope| envelope.execute)
    }

    fn with(before: &[u8], after: &[u8]) -> Vec<u8> {
        [before, LIST, after].concat()
    }

    #[test]
    fn what_surrounds_the_value_does_not_matter() {
        for input in [
            with(b"", b""),
            with(b" \t\r\n", b"\r\n"),
            with(b"\xef\xbb\xbf", b""),
            with(b"\xef\xbb\xbf \n", b""),
            with(b"", b"garbage"),
            with(b"", b"\0junk"),
            with(b"", b"\xff\xfe"),
            with(b"", LIST),
            with(b"", b"// a comment"),
            br#"{"":[1,{"a":null}],"arguments":{"x":{"y":1}},"execute":"list_hostfwd"}"#.to_vec(),
            br#"{"execute":"list_hostfw\u0064"}"#.to_vec(),
        ] {
            assert_eq!(verb(&input).as_deref(), Ok("list_hostfwd"), "{}", String::from_utf8_lossy(&input));
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for input in [
            "",
            " ",
            "\n",
            "\0{}",
            "x",
            "{",
            "}",
            "{'execute':'x'}",
            r#"{"execute":"x""#,
            r#"{"execute":"x",}"#,
            r#"{"execute":"x" "y":1}"#,
            r#"/*c*/{"execute":"x"}"#,
            r#"{"execute":"x","execute":"y"}"#,
            r#"{"a":1,"a":2,"execute":"x"}"#,
            r#"{"execute":"x","arguments":{"a":1,"a":2}}"#,
            r#"{"execute":"x","z":[{"b":{"a":1,"\u0061":2}}]}"#,
            r#"{"execute":"x","z":01}"#,
            r#"{"execute":"x","z":1e999}"#,
            r#"{"execute":"x","z":NaN}"#,
            r#"{"execute":"x","z":+1}"#,
            "{\"execute\":\"x\",\"z\":\"\t\"}",
            r#"{"execute":"x","z":"\q"}"#,
            r#"{"execute":"\ud800"}"#,
            "{\"execute\":\"x\0\"}",
            "\u{feff}\u{feff}{}",
        ] {
            assert_eq!(verb(input), Err(EnvelopeFault::Parse), "{input}");
        }
        assert_eq!(verb(b"\xef\xbb"), Err(EnvelopeFault::Parse));
        assert_eq!(verb(b"{\"execute\":\"x\xff\"}"), Err(EnvelopeFault::Parse));
        assert_eq!(verb("[".repeat(4000)), Err(EnvelopeFault::Parse));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for input in ["null", "true", "1", "-1.5e3", "[]", "\"x\"", "[{}]"] {
            assert_eq!(verb(input), Err(EnvelopeFault::NotObject), "{input}");
        }
        for input in ["{}", r#"{"execute":1}"#, r#"{"execute":null}"#, r#"{"Execute":"x"}"#, r#"{"execute":["x"]}"#] {
            assert_eq!(verb(input), Err(EnvelopeFault::NoExecute), "{input}");
        }
        assert_eq!(verb(r#"{"execute":""}"#).as_deref(), Ok(""));
    }

    #[test]
    fn arguments_that_are_no_object_are_none() {
        for arguments in ["null", "[]", "5", "\"x\"", "{}"] {
            let input = format!(r#"{{"execute":"x","arguments":{arguments}}}"#);
            let envelope = read(input.as_bytes(), false).unwrap().unwrap();
            assert!(envelope.arguments.is_empty(), "{input}");
        }
    }

    #[test]
    fn a_request_in_pieces_is_waited_for() {
        for whole in [
            with(b"\xef\xbb\xbf", b""),
            "{\"execute\":\"é\\ud83d\\ude00x\\n\",\"arguments\":{\"a\":[1,-2.5e1,true,null,{}]}}".as_bytes().to_vec(),
        ] {
            for len in 0..whole.len() {
                assert_eq!(read(&whole[..len], false), None, "{len}");
                assert_eq!(read(&whole[..len], true), Some(Err(EnvelopeFault::Parse)), "{len}");
            }
            assert!(matches!(read(&whole, false), Some(Ok(_))));
        }
        // What can become no request is not waited for.
        assert_eq!(read(b"x", false), Some(Err(EnvelopeFault::Parse)));
        assert_eq!(read(b"\xef\xbc", false), Some(Err(EnvelopeFault::Parse)));
        assert_eq!(read(b"{\"execute\":\0", false), Some(Err(EnvelopeFault::Parse)));
        assert_eq!(read(br#"{"a":1,"a":2,"#, false), Some(Err(EnvelopeFault::Parse)));
    }

    proptest::proptest! {
        #[test]
        fn any_input_is_read_or_refused(input: Vec<u8>, ended: bool) {
            let read = read(&input, ended);
            proptest::prop_assert!(!ended || read.is_some());
        }

        #[test]
        fn any_text_is_read_or_refused(input in "[\\[\\]{}\":, 0-9a-f\\\\u.-]{0,40}") {
            proptest::prop_assert!(read(input.as_bytes(), true).is_some());
        }
    }
}
