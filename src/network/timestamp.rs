//! Points in time as people and Docker write them: RFC 3339, and Go's notation.
//!
//! A value only: the clock is the caller's. The proleptic Gregorian calendar without leap seconds, in UTC; years 1 to
//! 9999, which is what RFC 3339 can say.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Seconds of a day.
const DAY: i64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_DAYS: i64 = 719_468;
/// Days of 400 years, after which the calendar repeats.
const ERA_DAYS: i64 = 146_097;
/// The last second of the year 9999.
const MAX_SECONDS: i64 = 253_402_300_799;
/// The first second of the year 1.
const MIN_SECONDS: i64 = -62_135_596_800;

/// A point in time, since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    seconds: i64,
    /// Of the second, 0 to 999 999 999.
    nanos: u32,
}

/// A text that is no point in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a time such as 2026-01-31T12:00:00Z")]
pub struct NotTime(String);

impl Timestamp {
    /// From a duration since 1970, as the clock says it; what is beyond the year 9999 is its end.
    pub fn since_epoch(time: Duration) -> Self {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(MAX_SECONDS).min(MAX_SECONDS);
        Self { seconds, nanos: time.subsec_nanos() }
    }

    /// As Go prints a time in UTC: `2026-01-31 12:00:00.5 +0000 UTC`.
    pub fn go(self) -> String {
        let text = self.to_string();
        let (date, time) = text.split_once('T').unwrap_or((&text, ""));
        format!("{date} {} +0000 UTC", time.trim_end_matches('Z'))
    }

    /// Year, month and day.
    fn date(self) -> (i64, i64, i64) {
        // Years begin in March here, so that the leap day is a year's last.
        let days = self.seconds.div_euclid(DAY) + EPOCH_DAYS;
        let (era, of_era) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        (era * 400 + year + carry, month, day)
    }
}

/// Days from 1970-01-01 to a date.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    era * ERA_DAYS + of_era * 365 + of_era / 4 - of_era / 100 + (153 * month + 2) / 5 + day - 1 - EPOCH_DAYS
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC, with as many digits of the second's fraction as say something.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.date();
        let second = self.seconds.rem_euclid(DAY);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        if self.nanos != 0 {
            write!(f, ".{}", format!("{:09}", self.nanos).trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

impl FromStr for Timestamp {
    type Err = NotTime;

    /// RFC 3339, and its beginnings that Docker takes: a date, a date with a time, both without a zone (UTC then); or
    /// seconds since 1970 with or without a fraction.
    fn from_str(text: &str) -> Result<Self, NotTime> {
        parse(text).ok_or_else(|| NotTime(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Timestamp> {
    if !text.contains('-') {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let nanos = if text.contains('.') { nanos(fraction)? } else { 0 };
        return Some(Timestamp { seconds: number(whole, 1..=12, 0..=MAX_SECONDS)?, nanos });
    }
    let (date, time) = text.split_once('T').map_or((text, None), |(date, time)| (date, Some(time)));
    let mut parts = date.split('-');
    let mut part = |digits: usize, range| number(parts.next()?, digits..=digits, range);
    let (year, month, day) = (part(4, 1..=9999)?, part(2, 1..=12)?, part(2, 1..=31)?);
    if parts.next().is_some() {
        return None;
    }
    let start = days(year, month, day);
    // The 31st of a month that has none is another date.
    if (Timestamp { seconds: start * DAY, nanos: 0 }).date() != (year, month, day) {
        return None;
    }
    let (seconds, nanos) = time.map_or(Some((0, 0)), time_of_day)?;
    let seconds = start * DAY + seconds;
    (MIN_SECONDS..=MAX_SECONDS).contains(&seconds).then_some(Timestamp { seconds, nanos })
}

/// `HH:MM[:SS[.FRACTION]]` and a zone: seconds from the day's start in UTC, and nanoseconds.
fn time_of_day(text: &str) -> Option<(i64, u32)> {
    let (time, zone) = text.find(['Z', '+', '-']).map_or((text, "Z"), |at| text.split_at(at));
    let offset = match zone.strip_prefix(['+', '-']) {
        None => (zone == "Z").then_some(0)?,
        Some(shift) => {
            let (hours, minutes) = shift.split_once(':')?;
            let shift = number(hours, 2..=2, 0..=23)? * 3600 + number(minutes, 2..=2, 0..=59)? * 60;
            if zone.starts_with('-') { -shift } else { shift }
        }
    };
    let mut parts = time.split(':');
    let hour = number(parts.next()?, 2..=2, 0..=23)?;
    let minute = number(parts.next()?, 2..=2, 0..=59)?;
    let (second, nanos) = match parts.next() {
        None => (0, 0),
        Some(part) => match part.split_once('.') {
            Some((second, fraction)) => (number(second, 2..=2, 0..=59)?, nanos(fraction)?),
            None => (number(part, 2..=2, 0..=59)?, 0),
        },
    };
    parts.next().is_none().then_some((hour * 3600 + minute * 60 + second - offset, nanos))
}

fn number(text: &str, digits: std::ops::RangeInclusive<usize>, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
    let plain = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|value| plain && range.contains(value))
}

fn nanos(fraction: &str) -> Option<u32> {
    number(fraction, 1..=9, 0..=999_999_999)?;
    format!("{fraction:0<9}").parse().ok()
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_times() {
        for (seconds, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_400, 500_000_000, "2000-02-29T00:00:00.5Z"),
            (1_709_210_096, 123_456_789, "2024-02-29T12:34:56.123456789Z"),
            (-1, 0, "1969-12-31T23:59:59Z"),
            (MIN_SECONDS, 0, "0001-01-01T00:00:00Z"),
            (MAX_SECONDS, 0, "9999-12-31T23:59:59Z"),
        ] {
            let time = Timestamp { seconds, nanos };
            assert_eq!(time.to_string(), text);
            assert_eq!(text.parse(), Ok(time));
        }
        let time: Timestamp = "2024-02-29T12:34:56.5Z".parse().unwrap();
        assert_eq!(time.go(), "2024-02-29 12:34:56.5 +0000 UTC");
    }

    #[test]
    fn shorter_forms_and_zones() {
        for (text, same) in [
            ("2024-02-29", "2024-02-29T00:00:00Z"),
            ("2024-02-29T12:34", "2024-02-29T12:34:00Z"),
            ("2024-02-29T12:34:56", "2024-02-29T12:34:56Z"),
            ("2024-02-29T01:00:00+02:30", "2024-02-28T22:30:00Z"),
            ("2024-02-29T23:00:00.25-02:00", "2024-03-01T01:00:00.25Z"),
            ("1709210096.5", "2024-02-29T12:34:56.5Z"),
            ("0", "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(text.parse::<Timestamp>().map(|time| time.to_string()).as_deref(), Ok(same), "{text}");
        }
        for bad in [
            "",
            "x",
            "2023-02-29",
            "2024-13-01",
            "2024-00-01",
            "2024-1-1",
            "2024-01-01T",
            "2024-01-01T24:00",
            "2024-01-01T10:00:60Z",
            "2024-01-01T10:00:00X",
            "2024-01-01T10:00:00+2:00",
            "2024-01-01T10:00:00.Z",
            "-1",
            "1.",
            "99999999999999",
            "0000-01-01",
            "2024-01-01T10:00:00.1234567890Z",
            "+024-01-01",
        ] {
            assert_eq!(bad.parse::<Timestamp>(), Err(NotTime(bad.to_owned())), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(seconds in MIN_SECONDS..=MAX_SECONDS, nanos in 0u32..1_000_000_000) {
            let time = Timestamp { seconds, nanos };
            prop_assert_eq!(time.to_string().parse(), Ok(time));
        }

        #[test]
        fn hostile_texts_do_not_panic(text in "[-0-9TZ:.+é]{0,40}") {
            let _ = text.parse::<Timestamp>();
        }
    }
}
