//! What `tapway top` knows, and how it looks: samples and DNS answers in, lines out. No clock, no terminal.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use crate::cli::flows::arrow;
use crate::cli::table::{Side, Table, bytes, cell, span};

/// Most names that are kept; the oldest go first.
pub const MOST_NAMES: usize = 4096;
/// Most reasons of drops that are shown.
const MOST_REASONS: usize = 6;
/// Rows of a frame that are no flows: two lines above, a heading, and a line of drops below.
const FRAME: usize = 5;

#[derive(Clone, Debug)]
struct Row {
    flow: Value,
    from_guest: u64,
    to_guest: u64,
    /// Bytes a second.
    from_rate: f64,
    to_rate: f64,
}

/// Everything that is shown.
#[derive(Debug)]
pub struct View {
    name: String,
    rows: HashMap<String, Row>,
    /// Seconds, of the caller's clock.
    sampled: Option<f64>,
    total: u64,
    drops: BTreeMap<String, (u64, f64)>,
    names: HashMap<IpAddr, String>,
    order: VecDeque<IpAddr>,
    message: Option<String>,
}

impl View {
    /// Of the sandbox `name`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            rows: HashMap::new(),
            sampled: None,
            total: 0,
            drops: BTreeMap::new(),
            names: HashMap::new(),
            order: VecDeque::new(),
            message: None,
        }
    }

    /// Something to tell instead of nothing.
    pub fn say(&mut self, message: Option<&str>) {
        self.message = message.map(str::to_owned);
    }

    /// Takes what is there `at` seconds: `flows` of `total`, and `drops` by reason.
    #[allow(clippy::cast_precision_loss, reason = "rates are shown in three digits")]
    pub fn sample(&mut self, at: f64, flows: &[Value], total: u64, drops: &Value) {
        let elapsed = self.sampled.map(|before| at - before).filter(|elapsed| *elapsed > 0.0);
        let rate = |now: u64, before: u64| elapsed.map_or(0.0, |elapsed| now.saturating_sub(before) as f64 / elapsed);
        let mut rows = HashMap::with_capacity(flows.len());
        for flow in flows {
            let count = |field: &str| flow[field].as_u64().unwrap_or(0);
            let (id, from_guest, to_guest) = (cell(&flow["id"]), count("from_guest_bytes"), count("to_guest_bytes"));
            // A flow that was not there has carried everything since.
            let (from_before, to_before) = self.rows.get(&id).map_or((0, 0), |row| (row.from_guest, row.to_guest));
            let (from_rate, to_rate) = (rate(from_guest, from_before), rate(to_guest, to_before));
            rows.insert(id, Row { flow: flow.clone(), from_guest, to_guest, from_rate, to_rate });
        }
        let mut counted = BTreeMap::new();
        for (reason, count) in drops.as_object().into_iter().flatten() {
            let count = count.as_u64().unwrap_or(0);
            let before = self.drops.get(reason).map_or(count, |(before, _)| *before);
            counted.insert(reason.clone(), (count, rate(count, before)));
        }
        (self.rows, self.drops, self.total, self.sampled) = (rows, counted, total, Some(at));
    }

    /// Takes an event; of DNS answers the addresses get the name that was asked for.
    pub fn learn(&mut self, event: &[u8]) {
        let Ok(event) = serde_json::from_slice::<Value>(event) else { return };
        let data = &event["data"];
        let Some(name) = data["name"].as_str() else { return };
        for address in data["addresses"].as_array().into_iter().flatten() {
            if let Some(address) = address.as_str().and_then(|text| text.parse().ok()) {
                self.name(address, name);
            }
        }
    }

    fn name(&mut self, address: IpAddr, name: &str) {
        if self.names.insert(address, name.trim_end_matches('.').to_owned()).is_none() {
            self.order.push_back(address);
        }
        while self.order.len() > MOST_NAMES {
            if let Some(oldest) = self.order.pop_front() {
                self.names.remove(&oldest);
            }
        }
    }

    /// The peer as it is shown: by its name where that is known.
    fn peer(&self, peer: &Value) -> String {
        let text = cell(peer);
        let address = text.parse().map(|peer: SocketAddr| (peer.ip(), Some(peer.port())));
        let Ok((ip, port)) = address.or_else(|_| text.parse().map(|ip: IpAddr| (ip, None))) else { return text };
        match (self.names.get(&ip), port) {
            (Some(name), Some(port)) => format!("{name}:{port}"),
            (Some(name), None) => name.clone(),
            (None, _) => text,
        }
    }

    /// At most `height` lines of at most `width` characters.
    pub fn frame(&self, width: usize, height: usize, clock: &str) -> Vec<String> {
        let mut rows: Vec<&Row> = self.rows.values().collect();
        // By rate, then by what was carried at all, then as they are called: a frame does not jump without a reason.
        rows.sort_by(|a, b| {
            let by_rate = (b.from_rate + b.to_rate).total_cmp(&(a.from_rate + a.to_rate));
            let carried = |row: &Row| row.from_guest.saturating_add(row.to_guest);
            let by_name = || cell(&a.flow["id"]).cmp(&cell(&b.flow["id"]));
            by_rate.then_with(|| carried(b).cmp(&carried(a))).then_with(by_name)
        });
        let sum = |rate: fn(&Row) -> f64| speed(rows.iter().map(|row| rate(row)).sum());
        let flows = if self.total > rows.len() as u64 {
            format!("{} flows of {}", rows.len(), self.total)
        } else {
            format!("{} flows", rows.len())
        };
        let (from, to) = (sum(|row| row.from_rate), sum(|row| row.to_rate));
        let mut lines = vec![
            format!("tapway top: {}   {clock}   {flows}   from guest {from}   to guest {to}", self.name),
            self.message.clone().unwrap_or_default(),
        ];
        let mut table = Table::new(&[
            ("FROM GUEST", Side::Right),
            ("TO GUEST", Side::Right),
            ("TOTAL", Side::Right),
            ("PROTO", Side::Left),
            ("STATE", Side::Left),
            ("GUEST", Side::Left),
            ("", Side::Left),
            ("PEER", Side::Left),
            ("AGE", Side::Right),
        ]);
        for row in rows.iter().take(height.saturating_sub(FRAME)) {
            table.row([
                speed(row.from_rate),
                speed(row.to_rate),
                bytes(row.from_guest.saturating_add(row.to_guest)),
                cell(&row.flow["protocol"]),
                cell(&row.flow["state"]),
                cell(&row.flow["guest"]),
                arrow(&row.flow).to_owned(),
                self.peer(&row.flow["peer"]),
                row.flow["age_seconds"].as_f64().map_or_else(|| "-".to_owned(), span),
            ]);
        }
        lines.extend(table.render().lines().map(str::to_owned));
        lines.push(String::new());
        lines.push(self.drop_line());
        lines.iter().take(height).map(|line| fit(line, width)).collect()
    }

    fn drop_line(&self) -> String {
        let mut drops: Vec<_> = self.drops.iter().filter(|(_, (count, _))| *count > 0).collect();
        drops.sort_by(|(_, (a, a_rate)), (_, (b, b_rate))| b_rate.total_cmp(a_rate).then(b.cmp(a)));
        if drops.is_empty() {
            return "drops: none".to_owned();
        }
        let show = |(reason, (count, rate)): &(&String, &(u64, f64))| {
            if *rate > 0.0 { format!("{reason} {count} ({rate:.0}/s)") } else { format!("{reason} {count}") }
        };
        let shown: Vec<String> = drops.iter().take(MOST_REASONS).map(show).collect();
        format!("drops: {}{}", shown.join(", "), if drops.len() > MOST_REASONS { ", …" } else { "" })
    }
}

/// Bytes a second.
fn speed(rate: f64) -> String {
    if rate < 0.5 { "-".to_owned() } else { format!("{}/s", bytes(rate.round() as u64)) }
}

/// Cut to `width`, and of characters whose width is known.
fn fit(line: &str, width: usize) -> String {
    let narrow = |c: char| if c == '…' || c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    if line.chars().count() <= width {
        return line.chars().map(narrow).collect();
    }
    line.chars().take(width.saturating_sub(1)).map(narrow).chain(std::iter::once('…')).take(width).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn flow(id: &str, peer: &str, from: u64, to: u64) -> Value {
        json!({ "id": id, "protocol": "tcp", "state": "open", "guest": "10.0.2.100:4000", "peer": peer,
            "direction": "outgoing", "from_guest_bytes": from, "to_guest_bytes": to, "age_seconds": 5.0 })
    }

    fn view() -> View {
        let mut view = View::new("site");
        let slow = flow("tcp-1-1", "192.0.2.1:443", 100, 1 << 30);
        view.sample(10.0, &[slow, flow("tcp-2-1", "192.0.2.2:80", 0, 0)], 2, &json!({ "policy": 3, "other": 0 }));
        view
    }

    #[test]
    fn flows_stand_by_their_rate() {
        let mut view = view();
        let before = view.frame(200, 50, "09:00:00 UTC");
        assert!(before[0].ends_with("2 flows   from guest -   to guest -"), "{before:?}");
        assert!(before[3].contains("192.0.2.1:443"), "{before:?}");
        let slow = flow("tcp-1-1", "192.0.2.1:443", 100, 1 << 30);
        let fast = flow("tcp-2-1", "192.0.2.2:80", 2048, 1024);
        let new = flow("tcp-3-1", "[2001:db8::1]:80", 512, 0);
        view.sample(12.0, &[slow, fast, new], 3, &json!({ "policy": 7, "other": 0 }));
        assert_eq!(
            view.frame(200, 50, "09:00:02 UTC"),
            [
                "tapway top: site   09:00:02 UTC   3 flows   from guest 1.2 KiB/s   to guest 512 B/s",
                "",
                "FROM GUEST  TO GUEST    TOTAL  PROTO  STATE  GUEST                PEER               AGE",
                "1.0 KiB/s   512 B/s  3.0 KiB  tcp    open   10.0.2.100:4000  ->  192.0.2.2:80      5.0s",
                "256 B/s         -    512 B  tcp    open   10.0.2.100:4000  ->  [2001:db8::1]:80  5.0s",
                "-         -  1.0 GiB  tcp    open   10.0.2.100:4000  ->  192.0.2.1:443     5.0s",
                "",
                "drops: policy 7 (2/s)",
            ]
            .map(|line| match line.split_once("  ") {
                // The first column is ten wide, to the right.
                Some((first, _)) if line.contains("4000") => format!("{first:>10}{}", &line[first.len()..]),
                _ => line.to_owned(),
            })
        );
    }

    #[test]
    fn names_come_from_answers() {
        let mut view = view();
        view.learn(
            br#"{"event":"dns","data":{"name":"web.example.","addresses":["192.0.2.1","alias.example","::1"]}}"#,
        );
        view.learn(br#"{"event":"dns","data":{"name":"db","addresses":["192.0.2.2",5]}}"#);
        for nothing in [&b"no json"[..], b"{}", b"[]", br#"{"event":"lost","data":{"count":1}}"#] {
            view.learn(nothing);
        }
        let frame = view.frame(200, 50, "");
        assert!(frame[3].contains(" web.example:443 ") && frame[4].contains(" db:80 "), "{frame:?}");
        assert_eq!(view.peer(&json!("::1")), "web.example");
        assert_eq!(view.peer(&Value::Null), "-");
    }

    #[test]
    fn names_are_bounded() {
        let mut view = view();
        for n in 0..u32::try_from(MOST_NAMES).unwrap() + 10 {
            view.name(IpAddr::from(n.to_be_bytes()), "x");
        }
        assert_eq!((view.names.len(), view.order.len()), (MOST_NAMES, MOST_NAMES));
        assert!(!view.names.contains_key(&IpAddr::from([0, 0, 0, 9])));
    }

    #[test]
    fn a_frame_fits_its_screen() {
        let mut view = view();
        view.learn("{\"event\":\"dns\",\"data\":{\"name\":\"\\u001b[2J漢\",\"addresses\":[\"192.0.2.1\"]}}".as_bytes());
        view.say(Some("being replaced"));
        for (width, height) in [(80, 24), (20, 6), (1, 1), (0, 0), (200, 5)] {
            let frame = view.frame(width, height, "09:00:00 UTC");
            assert!(frame.len() <= height, "{width}x{height}: {frame:?}");
            assert!(frame.iter().all(|line| line.chars().count() <= width), "{width}x{height}: {frame:?}");
        }
        let frame = view.frame(200, 24, "");
        assert_eq!(frame[1], "being replaced");
        assert!(frame[3].contains("\\u{1b}[2J?:443") && !frame.concat().contains('\u{1b}'), "{frame:?}");
        assert!(view.frame(30, 24, "")[0].ends_with('…'));
    }

    #[test]
    fn a_bounded_sample_says_so() {
        let mut view = View::new("x");
        view.sample(0.0, &[flow("a", "-", 0, 0)], 9000, &Value::Null);
        assert!(view.frame(200, 9, "")[0].contains("1 flows of 9000"));
    }
}
