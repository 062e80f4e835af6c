//! `tapway flows NAME`: what is connected to what, and how much went either way; and `--kill`, which ends one.
//!
//! A listing is fetched in pages; flows that come and go meanwhile may be in it or not.

use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Failure;
use super::table::{Side, Table, bytes, cell, line, output, span};
use super::target::{self, Target};

/// Most flows of one page.
const PAGE: u64 = 256;

const EXAMPLES: &str = "\
Examples:
  tapway flows site
      everything that the sandbox 'site' is connected to
  tapway flows site --protocol tcp --peer 192.0.2.0/24 --json | jq -r '.flows[].id'
  tapway flows site --kill tcp-12-345
      ends one, by its id: a reset on both sides";

/// Arguments of `tapway flows`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct FlowsArgs {
    /// Name or id of the sandbox, a process in it, or a socket
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Of this one of its networks, where it is on several [default: that which has the default route]
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// Only flows of this protocol
    #[arg(long, value_name = "tcp|udp|icmp")]
    pub protocol: Option<String>,
    /// Only flows of this address, network or port of the guest: ADDR, ADDR/BITS, ADDR:PORT, :PORT
    #[arg(long, value_name = "ADDR")]
    pub guest: Option<String>,
    /// Only flows with this address, network or port at the other end
    #[arg(long, value_name = "ADDR")]
    pub peer: Option<String>,
    /// Only flows in this state, as it is shown
    #[arg(long, value_name = "STATE")]
    pub state: Option<String>,
    /// Show at most so many
    #[arg(long, value_name = "COUNT")]
    pub limit: Option<usize>,
    /// End this flow instead
    #[arg(long, value_name = "ID", conflicts_with_all = ["protocol", "guest", "peer", "state", "limit"])]
    pub kill: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A page.
#[derive(Debug, Deserialize)]
pub struct Page {
    /// Flows as the protocol has them.
    pub flows: Vec<Value>,
    /// Where the next page begins.
    #[serde(default)]
    pub next: Option<Value>,
    /// All flows, before any filter.
    #[serde(default)]
    pub total: u64,
}

/// Fetches pages from `ask` until the last one or `most` flows. The flows, and how many there are in all.
pub fn fetch<E>(
    filter: &Map<String, Value>,
    most: usize,
    mut ask: impl FnMut(&Value) -> Result<Page, E>,
) -> Result<(Vec<Value>, u64), E> {
    let mut flows = Vec::new();
    let mut arguments = filter.clone();
    arguments.insert("limit".to_owned(), PAGE.min(most as u64).max(1).into());
    let mut arguments = Value::Object(arguments);
    loop {
        let page = ask(&arguments)?;
        flows.extend(page.flows);
        match page.next {
            // A cursor that does not move would be for ever.
            Some(next) if flows.len() < most && !next.is_null() && arguments["after"] != next => {
                arguments["after"] = next;
            }
            _ => {
                flows.truncate(most);
                return Ok((flows, page.total));
            }
        }
    }
}

/// Does it.
pub fn main(args: &FlowsArgs) -> Result<u8, Failure> {
    let target = target::find(&args.sandbox)?.on(args.network.as_ref());
    if let Some(id) = &args.kill {
        let reply: Value = target.ask("kill_flow", json!({ "id": id }))?;
        return if args.json { output(&line(&reply)) } else { Ok(0) };
    }
    let mut filter = Map::new();
    let filters = [("protocol", &args.protocol), ("guest", &args.guest), ("peer", &args.peer), ("state", &args.state)];
    for (name, value) in filters {
        if let Some(value) = value {
            filter.insert(name.to_owned(), value.as_str().into());
        }
    }
    let (flows, total) = all(&target, &filter, args.limit.unwrap_or(usize::MAX))?;
    if args.json {
        return output(&line(&json!({ "flows": flows, "total": total })));
    }
    output(&render(&flows))
}

fn all(target: &Target, filter: &Map<String, Value>, most: usize) -> Result<(Vec<Value>, u64), Failure> {
    if most == 0 {
        return Err(Failure { code: super::USAGE, line: "--limit 0 shows nothing; write 1 or more".to_owned() });
    }
    fetch(filter, most, |arguments| target.ask("list_flows", arguments))
}

/// Who began: `->` the guest, `<-` somebody outside.
pub fn arrow(flow: &Value) -> &'static str {
    if flow["direction"] == "published" { "<-" } else { "->" }
}

fn render(flows: &[Value]) -> String {
    let mut table = Table::new(&[
        ("ID", Side::Left),
        ("PROTO", Side::Left),
        ("STATE", Side::Left),
        ("GUEST", Side::Left),
        ("", Side::Left),
        ("PEER", Side::Left),
        ("FROM GUEST", Side::Right),
        ("TO GUEST", Side::Right),
        ("AGE", Side::Right),
        ("IDLE", Side::Right),
    ]);
    let amount = |value: &Value| value.as_u64().map_or_else(|| "-".to_owned(), bytes);
    let time = |value: &Value| value.as_f64().map_or_else(|| "-".to_owned(), span);
    for flow in flows {
        table.row([
            cell(&flow["id"]),
            cell(&flow["protocol"]),
            cell(&flow["state"]),
            cell(&flow["guest"]),
            arrow(flow).to_owned(),
            cell(&flow["peer"]),
            amount(&flow["from_guest_bytes"]),
            amount(&flow["to_guest_bytes"]),
            time(&flow["age_seconds"]),
            time(&flow["idle_seconds"]),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(most: usize) -> (Vec<Value>, u64, Vec<Value>) {
        let mut asked = Vec::new();
        let page = |flows: &[u32], next: Value| Page {
            flows: flows.iter().map(|&n| json!(n)).collect(),
            next: Some(next),
            total: 9,
        };
        let filter = Map::from_iter([("state".to_owned(), json!("open"))]);
        let (flows, total) = fetch(&filter, most, |arguments| {
            asked.push(arguments.clone());
            Ok::<_, ()>(match arguments.get("after").and_then(Value::as_str) {
                None => page(&[1, 2], json!("b")),
                // A filter may leave a page empty.
                Some("b") => page(&[], json!("c")),
                _ => page(&[3], Value::Null),
            })
        })
        .unwrap();
        (flows, total, asked)
    }

    #[test]
    fn pages_are_put_together() {
        let (flows, total, asked) = pages(usize::MAX);
        assert_eq!((flows, total), (vec![json!(1), json!(2), json!(3)], 9));
        let first = json!({ "state": "open", "limit": 256 });
        let with = |after: &str| json!({ "state": "open", "limit": 256, "after": after });
        assert_eq!(asked, [first, with("b"), with("c")]);
        let (flows, _, asked) = pages(1);
        assert_eq!((flows, asked.len()), (vec![json!(1)], 1));
        assert_eq!(asked[0]["limit"], 1);
    }

    #[test]
    fn a_cursor_that_stands_still_ends_it() {
        let mut turns = 0;
        let page = |_: &Value| {
            turns += 1;
            Ok::<_, ()>(Page { flows: vec![json!(1)], next: Some(json!("same")), total: 1 })
        };
        let _ = fetch(&Map::new(), usize::MAX, page).unwrap();
        assert_eq!(turns, 2);
    }

    #[test]
    fn flows_are_shown() {
        let flows = [
            json!({ "id": "tcp-1-2", "protocol": "tcp", "state": "open", "guest": "10.0.2.100:4000",
                "peer": "192.0.2.1:443", "direction": "outgoing", "from_guest_bytes": 1536, "to_guest_bytes": 5,
                "age_seconds": 61.2, "idle_seconds": 0.1 }),
            json!({ "id": "udp-1-2", "protocol": "udp", "state": "\x1b]0;", "guest": "[fd00::100]:53", "peer": null,
                "direction": "published" }),
        ];
        let lines = render(&flows);
        let mut lines = lines.lines();
        assert!(lines.next().unwrap().starts_with("ID       PROTO  STATE"));
        assert_eq!(
            lines.next().unwrap(),
            "tcp-1-2  tcp    open       10.0.2.100:4000  ->  192.0.2.1:443     1.5 KiB       5 B  1m01s  0.1s"
        );
        assert!(lines.next().unwrap().starts_with("udp-1-2  udp    \\u{1b}]0;  [fd00::100]:53   <-  -"));
    }
}
