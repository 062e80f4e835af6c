//! Why a request is refused: a text for people, and a code for programs.
//!
//! ```text
//! {"error":{"desc":"published port '8080:80': port 8080/tcp on 0.0.0.0 is already in use; …","code":"port_in_use"}}
//! ```
//!
//! Codes are stable: one is never renamed and never given another meaning. New ones may come, so a program that meets a
//! code that it does not know takes it for [`Code::Internal`]. Texts may change at any time.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What kind of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Not JSON, or only the beginning of it, or not UTF-8, or with a key twice.
    BadJson,
    /// JSON, but no request: no object, no verb, arguments that are no object.
    BadRequest,
    /// No such verb.
    UnknownVerb,
    /// A field that nobody asked for.
    UnknownField,
    /// An argument is missing, has another type, is out of range, or means nothing.
    BadArgument,
    /// More bytes than are read, or would be written.
    TooLarge,
    /// The rest of the request did not come in time, or the answer to it.
    TimedOut,
    /// Too much is asked at once; ask again.
    Busy,
    /// What is named is not there.
    NotFound,
    /// It is there already.
    Exists,
    /// Somebody has the port.
    PortInUse,
    /// The port needs a privilege.
    PortPrivileged,
    /// Not an address of this host.
    AddressNotLocal,
    /// Over a bound, which the text names.
    Limit,
    /// Known, but not to be had here.
    Unsupported,
    /// The network process ended while it was asked; ask again.
    Gone,
    /// Anything else.
    Internal,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{desc}")]
pub struct ApiError {
    /// One line, as a person should read it.
    pub desc: String,
    /// Its kind.
    pub code: Code,
}

impl ApiError {
    /// A refusal of this kind.
    pub fn new(code: Code, desc: impl Into<String>) -> Self {
        Self { desc: desc.into(), code }
    }

    /// The whole reply.
    pub fn reply(&self) -> Vec<u8> {
        serde_json::json!({ "error": self }).to_string().into_bytes()
    }
}

/// The whole reply of a request that was done.
pub fn success(value: &Value) -> Vec<u8> {
    format!(r#"{{"return":{value}}}"#).into_bytes()
}

/// The reply to a request.
pub fn reply(result: &Result<Value, ApiError>) -> Vec<u8> {
    match result {
        Ok(value) => success(value),
        Err(error) => error.reply(),
    }
}

/// Reads a verb's arguments; names what is wrong.
pub fn arguments<T: DeserializeOwned>(verb: &str, arguments: Map<String, Value>) -> Result<T, ApiError> {
    serde_json::from_value(Value::Object(arguments)).map_err(|error| bad_arguments(verb, &error))
}

/// The refusal of arguments that cannot be read.
pub fn bad_arguments(verb: &str, error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
    // serde has no other way to tell.
    let code = if text.starts_with("unknown field") { Code::UnknownField } else { Code::BadArgument };
    ApiError::new(code, format!("{verb}: {text}"))
}

/// A result as a value.
pub fn value<T: Serialize>(result: &T) -> Result<Value, ApiError> {
    serde_json::to_value(result)
        .map_err(|error| ApiError::new(Code::Internal, format!("cannot write the reply: {error}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Arguments {
        #[allow(dead_code)]
        id: u8,
    }

    fn fault(given: Value) -> (Code, String) {
        let Value::Object(map) = given else { panic!("an object") };
        let error = arguments::<Arguments>("do", map).unwrap_err();
        (error.code, error.desc)
    }

    #[test]
    fn arguments_are_named() {
        for (given, code, word) in [
            (json!({"id": 1, "more": 2}), Code::UnknownField, "`more`"),
            (json!({}), Code::BadArgument, "`id`"),
            (json!({"id": 256}), Code::BadArgument, "256"),
            (json!({"id": -1}), Code::BadArgument, "-1"),
            (json!({"id": "1"}), Code::BadArgument, "\"1\""),
        ] {
            let (got, desc) = fault(given.clone());
            assert_eq!(got, code, "{given}");
            assert!(desc.starts_with("do: ") && desc.contains(word), "{desc}");
        }
    }

    #[test]
    fn the_shape_on_the_wire() {
        let error = ApiError::new(Code::PortInUse, "no");
        let text = String::from_utf8(error.reply()).unwrap();
        assert_eq!(text, r#"{"error":{"code":"port_in_use","desc":"no"}}"#);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["error"]["code"], "port_in_use");
        assert_eq!(success(&json!({})), br#"{"return":{}}"#);
    }
}
