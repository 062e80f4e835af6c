//! `tapway fault set|clear|ls SANDBOX`: a bad network on purpose, for whoever wants to see their programs on one.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::Failure;
use super::table::{Side, Table, cell, line, output};
use super::target;
use crate::api::verbs::fault::Direction as Packets;
use crate::api::verbs::fault::{ClearFault, Cleared, FaultList, FaultRule, Impairment, ListFaults, SetFault};
use crate::network::fault::{Rate, Share, Span, UnitError, Wanted};

const EXAMPLES: &str = "\
Examples:
  tapway fault set --latency 50ms --jitter 5ms --loss 1% --rate 10mbit site
      a bad line, each way: packets come 45 to 55 ms late, one of a hundred never
  tapway fault set --latency 300ms --direction to-guest --to db site
      answers of 'db' come late, everything else is as it was
  tapway fault set --dns-fail 5% --seed 7 site
      of the questions for names five of a hundred fail, the same ones each time
  tapway fault clear site
      everything as it was";

const SET_EXAMPLES: &str = "\
What is not named stays as it was; 0 ends it. One rule counts for a packet: of those whose --to
fits its peer the most specific one. A name is looked up once, now.

Examples:
  tapway fault set --latency 50ms --jitter 5ms --loss 1% --rate 10mbit site
  tapway fault set --latency 50ms --direction from-guest site
      a ping takes 50 ms longer; with both directions, 100
  tapway fault set --loss 100% --to 192.0.2.0/24 site
      that network is not reached any more";

/// Arguments of `tapway fault`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct FaultArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: FaultAction,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum FaultAction {
    /// Delay, lose or slow packets, or have questions for names fail.
    Set(SetArgs),
    /// End faults; all of them unless some are named.
    Clear(ClearArgs),
    /// Show faults, and what they did so far.
    Ls(LsArgs),
}

/// Whose network.
#[derive(Debug, Args)]
pub struct Whose {
    /// Name or id of the sandbox, a process in it, or a socket
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// On this one of its networks, where it is on several [default: that which has the default route]
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Which packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// Those that the sandbox sends.
    FromGuest,
    /// Those that it is sent.
    ToGuest,
    /// Both, each by itself.
    Both,
}

impl From<Direction> for Packets {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::FromGuest => Self::FromGuest,
            Direction::ToGuest => Self::ToGuest,
            Direction::Both => Self::Both,
        }
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// Arguments of `tapway fault set`.
#[derive(Debug, Args)]
#[command(after_long_help = SET_EXAMPLES)]
pub struct SetArgs {
    /// How much later packets come, in each direction: 50ms, 1.5s, 200us; at most 60s
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub latency: Option<String>,
    /// Up to so much earlier or later than that, evenly distributed; no packet overtakes another
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub jitter: Option<String>,
    /// Have packets overtake each other where jitter says so
    #[arg(long, value_name = "on|off", hide_possible_values = true)]
    pub reorder: Option<Switch>,
    /// Share of packets that never come: 1%, 0.1%
    #[arg(long, value_name = "PERCENT", value_parser = share)]
    pub loss: Option<String>,
    /// What the line carries, in bits a second: 10mbit, 1.5gbit, 64kbit
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub rate: Option<String>,
    /// Share of questions for names that are answered SERVFAIL
    #[arg(long, value_name = "PERCENT", value_parser = share, conflicts_with = "to")]
    pub dns_fail: Option<String>,
    /// Which packets [default: both, each by itself]
    #[arg(long, value_name = "from-guest|to-guest|both", hide_possible_values = true)]
    pub direction: Option<Direction>,
    /// Only packets from and to this peer: an address, a network, or a name that the sandbox can resolve
    #[arg(long, value_name = "CIDR|NAME", value_parser = wanted)]
    pub to: Option<String>,
    /// Begin chance anew with this number, by which the same packets meet the same faults again
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "they would be the help of the command")]
    pub whose: Whose,
}

/// Arguments of `tapway fault clear`.
#[derive(Debug, Args)]
pub struct ClearArgs {
    /// Only what was set for this peer
    #[arg(long, value_name = "CIDR|NAME", value_parser = wanted)]
    pub to: Option<String>,
    /// Only this direction
    #[arg(long, value_name = "from-guest|to-guest|both", hide_possible_values = true)]
    pub direction: Option<Direction>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "they would be the help of the command")]
    pub whose: Whose,
}

/// Arguments of `tapway fault ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "they would be the help of the command")]
    pub whose: Whose,
}

fn span(text: &str) -> Result<String, UnitError> {
    text.parse::<Span>().map(|_| text.to_owned())
}

fn share(text: &str) -> Result<String, UnitError> {
    text.parse::<Share>().map(|_| text.to_owned())
}

fn rate(text: &str) -> Result<String, UnitError> {
    Rate::parse(text).map(|_| text.to_owned())
}

fn wanted(text: &str) -> Result<String, String> {
    Wanted::parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Does it.
pub fn main(args: &FaultArgs) -> Result<u8, Failure> {
    match &args.action {
        FaultAction::Set(args) => {
            let arguments = arguments(args)?;
            let target = target::find(&args.whose.sandbox)?.on(args.whose.network.as_ref());
            show(&target.ask::<FaultList>("set_fault", arguments)?, args.whose.json)
        }
        FaultAction::Clear(args) => {
            let arguments = ClearFault { to: args.to.clone(), direction: args.direction.map(Into::into) };
            let target = target::find(&args.whose.sandbox)?.on(args.whose.network.as_ref());
            let reply: Cleared = target.ask("clear_fault", arguments)?;
            if args.whose.json { output(&line(&json!(reply))) } else { Ok(0) }
        }
        FaultAction::Ls(LsArgs { whose }) => {
            let target = target::find(&whose.sandbox)?.on(whose.network.as_ref());
            show(&target.ask::<FaultList>("list_faults", ListFaults {})?, whose.json)
        }
    }
}

fn arguments(args: &SetArgs) -> Result<SetFault, Failure> {
    let SetArgs { latency, jitter, reorder, loss, rate, dns_fail, direction, to, seed, whose: _ } = args;
    let shapes = [latency, jitter, loss, rate].into_iter().any(Option::is_some) || reorder.is_some();
    if !shapes && dns_fail.is_none() && seed.is_none() {
        let line =
            "nothing is to be changed; give --latency, --jitter, --loss, --rate, --reorder, --dns-fail or --seed";
        return Err(Failure::usage(line));
    }
    Ok(SetFault {
        to: to.clone(),
        direction: direction.map(Into::into),
        latency: latency.clone(),
        jitter: jitter.clone(),
        loss: loss.clone(),
        rate: rate.clone(),
        reorder: reorder.map(|reorder| reorder == Switch::On),
        dns_fail: dns_fail.clone(),
        seed: *seed,
    })
}

fn show(list: &FaultList, json: bool) -> Result<u8, Failure> {
    output(&if json { line(&json!(list)) } else { render(&list.faults) })
}

fn render(rules: &[FaultRule]) -> String {
    let columns = [
        ("TO", Side::Left),
        ("DIRECTION", Side::Left),
        ("LATENCY", Side::Left),
        ("LOSS", Side::Left),
        ("RATE", Side::Left),
        ("SEED", Side::Right),
        ("PACKETS", Side::Right),
        ("DELAYED", Side::Right),
        ("LOST", Side::Right),
        ("OVERFLOWED", Side::Right),
    ];
    let (mut table, mut names) = (Table::new(&columns), String::new());
    let mut rows = 0;
    for rule in rules {
        for (direction, one) in [("from-guest", &rule.from_guest), ("to-guest", &rule.to_guest)] {
            if !is_something(one) {
                continue;
            }
            rows += 1;
            let to = rule.to.clone().unwrap_or_else(|| "everybody".to_owned());
            let amount = |text: &str| if text == "0" { "-".to_owned() } else { text.to_owned() };
            let texts = [to, direction.to_owned(), latency(one), amount(&one.loss), cell(&json!(one.rate))];
            let numbers = [rule.seed, one.packets, one.delayed, one.lost, one.overflowed];
            table.row(texts.into_iter().chain(numbers.map(|number| cell(&Value::from(number)))));
        }
        if rule.dns_fail != "0" {
            names = format!("questions for names that fail: {} (seed {})\n", rule.dns_fail, rule.seed);
        }
    }
    match (rows, names.is_empty()) {
        (0, true) => String::new(),
        (0, false) => names,
        (_, true) => table.render(),
        (_, false) => format!("{}\n{names}", table.render()),
    }
}

fn is_something(one: &Impairment) -> bool {
    one.latency != "0" || one.loss != "0" || one.rate.is_some()
}

fn latency(one: &Impairment) -> String {
    match (one.latency.as_str(), one.jitter.as_str()) {
        ("0", _) => "-".to_owned(),
        (latency, "0") => latency.to_owned(),
        (latency, jitter) if one.reorder => format!("{latency} +-{jitter}, any order"),
        (latency, jitter) => format!("{latency} +-{jitter}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cli::{Action, Cli};
    use clap::Parser as _;

    fn parse(args: &[&str]) -> Result<FaultArgs, clap::Error> {
        let all = ["tapway", "fault"].iter().chain(args);
        match Cli::try_parse_from(all)?.command {
            Action::Fault(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    fn set(args: &[&str]) -> Result<SetFault, String> {
        let all: Vec<&str> = ["set"].iter().chain(args).copied().collect();
        match parse(&all).map_err(|error| error.to_string())?.action {
            FaultAction::Set(args) => arguments(&args).map_err(|failure| failure.line),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_typed_becomes_arguments() {
        let typed = "--latency 50ms --jitter 5ms --loss 1% --rate 10mbit --direction to-guest --to DB --seed 7 --reorder on site";
        let got = set(&typed.split(' ').collect::<Vec<_>>()).unwrap();
        let expected = json!({ "latency": "50ms", "jitter": "5ms", "loss": "1%", "rate": "10mbit",
            "direction": "to_guest", "to": "DB", "seed": 7, "reorder": true });
        assert_eq!(json!(got), expected);
        assert_eq!(json!(set(&["--dns-fail", "5%", "site"]).unwrap()), json!({ "dns_fail": "5%" }));
        for (args, why) in [
            (&["--latency", "50", "site"][..], "'50' is no time; write a number and us, ms or s, such as 50ms"),
            (&["--loss", "200%", "site"], "'200%' is more than 100%"),
            (&["--rate", "10Mbit", "site"], "'10Mbit' is no rate"),
            (&["--direction", "up", "--loss", "1%", "site"], "invalid value 'up'"),
            (&["--to", "a b", "--loss", "1%", "site"], "'a b' is neither an address"),
            (&["--to", "db", "--dns-fail", "1%", "site"], "cannot be used with"),
            (&["--seed", "-1", "site"], "unexpected argument '-1'"),
            (&["site"], "nothing is to be changed"),
            (&["--direction", "both", "--to", "db", "site"], "nothing is to be changed"),
        ] {
            let error = set(args).unwrap_err();
            assert!(error.contains(why), "{args:?}: {error}");
        }
    }

    #[test]
    fn rules_are_shown() {
        let rules: Vec<FaultRule> = serde_json::from_value(json!([
            { "to": null, "addresses": [], "seed": 7, "restarts": 1, "dns_fail": "5%",
              "from_guest": { "latency": "50ms", "jitter": "5ms", "loss": "1%", "rate": "10mbit", "reorder": false,
                "packets": 100, "delayed": 99, "lost": 1, "overflowed": 0 },
              "to_guest": { "latency": "0", "jitter": "0", "loss": "0", "rate": null, "reorder": false } },
            { "to": "db", "addresses": ["192.0.2.7"], "seed": 123_456, "restarts": 0, "dns_fail": "0",
              "from_guest": { "latency": "0", "jitter": "0", "loss": "0", "rate": null, "reorder": false },
              "to_guest": { "latency": "1s", "jitter": "1s", "loss": "0", "rate": null, "reorder": true } },
        ]))
        .unwrap();
        let expected = "\
TO         DIRECTION   LATENCY            LOSS  RATE      SEED  PACKETS  DELAYED  LOST  OVERFLOWED
everybody  from-guest  50ms +-5ms         1%    10mbit       7      100       99     1           0
db         to-guest    1s +-1s, any order  -     -       123456        0        0     0           0

questions for names that fail: 5% (seed 7)
";
        let squeeze = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(squeeze(&render(&rules)), squeeze(expected));
        assert_eq!(render(&[]), "");
    }
}
