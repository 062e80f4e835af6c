//! Points in time as text, and back: RFC 3339 in UTC, and spans in words.

use std::fmt::Write as _;
use std::time::Duration;

/// The time, since 1970.
pub fn now() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// `2026-11-24T13:45:07.123456789Z`: nine digits, so that texts are in order as times are.
pub fn rfc3339(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs();
    let (year, month, day) = civil(i64::try_from(seconds / 86_400).unwrap_or(0));
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let mut text = String::with_capacity(30);
    // Writing to a String cannot fail.
    let _ = write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    let _ = write!(text, ".{:09}Z", since_1970.subsec_nanos());
    text
}

/// Year, month and day of a day since 1970 (the Gregorian calendar repeats every 400 years, 146 097 days; years are
/// counted from March, so that the leap day is their last).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, of_month)
}

/// The day since 1970 of a date.
fn day_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Reads what `docker logs --since` takes: RFC 3339 (the time, its fraction and the zone may be left out), seconds since
/// 1970, or a span before `now` as `1h30m`.
pub fn parse(text: &str, now: Duration) -> Option<Duration> {
    if let Some(span) = parse_span(text) {
        return Some(now.saturating_sub(span));
    }
    let number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if number {
        return text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    }
    parse_rfc3339(text)
}

/// `90s`, `1h30m`, `1.5h`, `300ms`.
pub fn parse_span(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let factor = match &rest[digits..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            _ => return None,
        };
        total += rest[..digits].parse::<f64>().ok()? * factor;
        rest = &rest[unit..];
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(total).ok() }
}

fn parse_rfc3339(text: &str) -> Option<Duration> {
    let number = |text: &str, digits: usize| {
        let fits = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<i64>().ok().filter(|_| fits)
    };
    let (date, time) = text.split_once(['T', 't', ' ']).unwrap_or((text, "00:00:00"));
    let mut parts = date.split('-');
    let (year, month, day) = (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let days = day_of(year, month, day);
    if parts.next().is_some() || civil(days) != (year, month, day) {
        return None;
    }
    let (clock, offset) = match time.find(['Z', 'z', '+', '-']) {
        None => (time, 0),
        Some(at) if matches!(&time[at..], "Z" | "z") => (&time[..at], 0),
        Some(at) => {
            let (hours, minutes) = time.get(at + 1..)?.split_once(':')?;
            let seconds = number(hours, 2)? * 3600 + number(minutes, 2)? * 60;
            (&time[..at], if time[at..].starts_with('-') { -seconds } else { seconds })
        }
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut parts = clock.split(':');
    let (hour, minute) = (number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let second = parts.next().map_or(Some(0), |second| number(second, 2))?;
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 60 || fraction.is_empty() || fraction.len() > 18 {
        return None;
    }
    let nanos: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos = number(&nanos, 9)?;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset;
    Some(Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).ok()?))
}

/// A span in Docker's words: "About a minute", "3 hours".
pub fn in_words(span: Duration) -> String {
    let seconds = span.as_secs();
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
#[allow(clippy::duration_suboptimal_units, reason = "as date -d @… takes them")]
mod tests {
    use super::*;

    const AT: Duration = Duration::new(1_764_000_307, 5_000_000);

    #[test]
    fn times_are_written_and_read() {
        assert_eq!(rfc3339(Duration::ZERO), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(AT), "2025-11-24T16:05:07.005000000Z");
        // Leap days, and the last second of a year (date -u -d @…).
        assert_eq!(rfc3339(Duration::from_secs(1_709_164_800)), "2024-02-29T00:00:00.000000000Z");
        assert_eq!(rfc3339(Duration::from_secs(4_107_542_399)), "2100-02-28T23:59:59.000000000Z");
        assert_eq!(rfc3339(Duration::from_secs(4_107_542_400)), "2100-03-01T00:00:00.000000000Z");
        for seconds in (0..5_000_000_000).step_by(86_399 * 97) {
            let at = Duration::new(seconds, 123_456_789);
            assert_eq!(parse(&rfc3339(at), AT), Some(at));
        }
    }

    #[test]
    fn what_since_takes() {
        for (text, seconds) in [
            ("2025-11-24T16:05:07Z", 1_764_000_307.0),
            ("2025-11-24T16:05:07", 1_764_000_307.0),
            ("2025-11-24 16:05:07.25", 1_764_000_307.25),
            ("2025-11-24T18:05:07+02:00", 1_764_000_307.0),
            ("2025-11-24T11:35:07-04:30", 1_764_000_307.0),
            ("2025-11-24T16:05", 1_764_000_300.0),
            ("2025-11-24", 1_763_942_400.0),
            ("1764000307", 1_764_000_307.0),
            ("1764000307.5", 1_764_000_307.5),
        ] {
            assert_eq!(parse(text, AT), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for (text, span) in [("90s", 90), ("1h30m", 5400), ("1.5h", 5400), ("2m", 120)] {
            assert_eq!(parse(text, AT), AT.checked_sub(Duration::from_secs(span)), "{text}");
        }
        for text in [
            "",
            "yesterday",
            "5x",
            "s",
            "2025-02-30",
            "2025-13-01",
            "25-1-1",
            "2025-11-24T25:00:00Z",
            "1.2.3",
            "-5s",
            "é",
        ] {
            assert_eq!(parse(text, AT), None, "{text}");
        }
    }

    #[test]
    fn spans_in_words() {
        for (seconds, words) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (2 * 86_400, "2 days"),
            (15 * 86_400, "2 weeks"),
            (61 * 86_400, "2 months"),
            (800 * 86_400, "2 years"),
        ] {
            assert_eq!(in_words(Duration::from_secs(seconds)), words, "{seconds}");
        }
    }
}
