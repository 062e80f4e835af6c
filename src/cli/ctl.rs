//! `tapway ctl NAME JSON`: a request of one's own, and its answer as it came.
//!
//! The request is sent as it was typed, so that what a server makes of it can be seen. The exit code tells what came:
//! 0 for `return`, 1 for `error`.

use std::io::Read as _;

use clap::Args;
use serde_json::Value;

use super::table::output;
use super::{FAILURE, Failure, target};

const EXAMPLES: &str = "\
Examples:
  tapway ctl site '{\"execute\":\"get_info\"}' | jq .return.v4
  tapway ctl /run/user/1000/api.sock '{\"execute\":\"list_hostfwd\"}'
      the API socket of slirp4netns, or of tapway in its place
  tapway ctl site - <request.json

Verbs, arguments and replies are in docs/control-socket.md.";

/// Most bytes of a request that are read from stdin; servers take less.
const MAX_REQUEST: u64 = 16 << 20;

/// Arguments of `tapway ctl`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct CtlArgs {
    /// Name or id of the sandbox, a process in it, or a socket
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// The request; '-' reads it from stdin
    #[arg(value_name = "JSON")]
    pub request: String,
}

/// Does it.
pub fn main(args: &CtlArgs) -> Result<u8, Failure> {
    let target = target::find(&args.sandbox)?;
    let mut request = Vec::new();
    if args.request == "-" {
        let read = std::io::stdin().take(MAX_REQUEST).read_to_end(&mut request);
        read.map_err(|error| Failure { code: FAILURE, line: format!("cannot read the request from stdin: {error}") })?;
    } else {
        request.extend_from_slice(args.request.as_bytes());
    }
    request.push(b'\n');
    let reply = target.server.exchange(&request).map_err(|error| target.failure("the request", &error))?;
    output(&shown(&reply))?;
    Ok(if refused(&reply) { FAILURE } else { 0 })
}

/// The answer on lines of its own. JSON escapes control characters itself; what else comes is escaped here.
fn shown(reply: &[u8]) -> String {
    let text = String::from_utf8_lossy(reply);
    text.trim_end().lines().map(super::printable).map(|line| line + "\n").collect()
}

fn refused(reply: &[u8]) -> bool {
    // Behind a `hello` or `subscribe` more may follow; the first answer counts.
    let first = serde_json::Deserializer::from_slice(reply).into_iter::<Value>().next();
    !matches!(first, Some(Ok(Value::Object(object))) if object.contains_key("return"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_shown_and_told_by_the_exit_code() {
        assert_eq!(shown(b"{\"return\":{}}"), "{\"return\":{}}\n");
        assert_eq!(shown(b"{\"return\":{}}\n{\"event\":\"\x1b\"}\n"), "{\"return\":{}}\n{\"event\":\"\\u{1b}\"}\n");
        assert!(!refused(b"{\"return\":null}"));
        assert!(!refused(b"{\"return\":{}}\n{\"event\":\"dns\"}\n"));
        for reply in [&b"{\"error\":{\"desc\":\"no\"}}"[..], b"what", b"[]", b"\xff"] {
            assert!(refused(reply), "{reply:?}");
        }
    }
}
