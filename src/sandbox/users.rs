//! Which host users stand behind the users of a sandbox: the uid and gid maps.
//!
//! The command runs as `inside` (root by default), and `inside` is always the caller, so that files of the caller stay
//! the caller's. What surrounds it depends on what the caller may do:
//!
//! ```text
//! privileged (CAP_SETUID, CAP_SETGID)    every user the caller can see, unchanged; the command changes to `inside`
//! /etc/subuid and /etc/subgid ranges     inside ↔ caller, the others in order from the ranges, by newuidmap/newgidmap
//! nothing                                inside ↔ caller alone; setgroups(2) denied, as the kernel demands
//! ```
//!
//! The maps are decided here, purely, and written by the monitor once the sandbox's first process exists.

/// User and group that the command runs as, inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
}

/// One line of a map: `count` ids from `inside` on stand for those from `outside` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First id in the sandbox.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Most lines that we use of /etc/subuid for one user; the kernel takes 340 (UID_GID_MAP_MAX_EXTENTS).
const MAX_RANGES: usize = 64;

/// What `--user` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserChoice {
    /// Root inside (default).
    Root,
    /// The caller's own ids inside, too.
    Keep,
    /// These; the group defaults to the user's number.
    Ids(Identity),
}

/// Reads `UID[:GID]` or `keep`.
pub fn parse_user(text: &str) -> Result<UserChoice, String> {
    if text == "keep" {
        return Ok(UserChoice::Keep);
    }
    let id = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        // 4294967295 is (uid_t)-1, which means "no change" to the kernel.
        part.parse().ok().filter(|&id: &u32| digits && id != u32::MAX)
    };
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    match (id(uid), id(gid)) {
        (Some(uid), Some(gid)) => Ok(UserChoice::Ids(Identity { uid, gid })),
        _ => Err(format!("user '{text}' is not numeric; give UID, UID:GID or keep")),
    }
}

/// One id of the caller's alone.
pub fn single(inside: u32, outside: u32) -> Vec<Range> {
    vec![Range { inside, outside, count: 1 }]
}

/// `inside` ↔ `caller`, and around it, from 0 upwards, the ids of `subordinate` (start, count) in order.
pub fn full(inside: u32, caller: u32, subordinate: &[(u32, u32)]) -> Vec<Range> {
    let mut map = Vec::new();
    let mut next = 0;
    for &(start, count) in subordinate.iter().take(MAX_RANGES) {
        let (mut start, mut count) = (start, count.min(u32::MAX - start));
        while count > 0 && next < u32::MAX {
            if next == inside {
                map.push(Range { inside, outside: caller, count: 1 });
                next += 1;
                continue;
            }
            let room = if next < inside { inside - next } else { u32::MAX - next };
            let take = count.min(room);
            map.push(Range { inside: next, outside: start, count: take });
            (start, count, next) = (start + take, count - take, next + take);
        }
    }
    if !map.iter().any(|range| range.inside == inside && range.outside == caller) {
        map.push(Range { inside, outside: caller, count: 1 });
    }
    map
}

/// Every id that this process can see, unchanged, from the text of its own /proc/self/uid_map.
pub fn unchanged(own_map: &str) -> Vec<Range> {
    own_map
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let inside = words.next()?.parse().ok()?;
            let count = words.nth(1)?.parse().ok()?;
            Some(Range { inside, outside: inside, count })
        })
        .take(MAX_RANGES)
        .collect()
}

/// The ranges that `text` (of /etc/subuid or /etc/subgid) gives to the user of this name or number.
pub fn subordinate(text: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            if Some(owner) != name && owner.parse() != Ok(uid) {
                return None;
            }
            let start: u32 = fields.next()?.parse().ok()?;
            let count: u32 = fields.next()?.parse().ok()?;
            (count > 0).then_some((start, count))
        })
        .take(MAX_RANGES)
        .collect()
}

/// The name of `uid` in the text of /etc/passwd. Read as text: the C library's resolver may ask the network.
pub fn name_of(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// The map as /proc/PID/uid_map takes it.
pub fn render(map: &[Range]) -> String {
    map.iter()
        .fold(String::new(), |text, range| text + &format!("{} {} {}\n", range.inside, range.outside, range.count))
}

/// True if `id` has someone behind it.
pub fn covers(map: &[Range], id: u32) -> bool {
    map.iter().any(|range| id >= range.inside && id - range.inside < range.count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(inside: u32, outside: u32, count: u32) -> Range {
        Range { inside, outside, count }
    }

    #[test]
    fn root_inside_with_a_full_range() {
        assert_eq!(full(0, 1000, &[(100_000, 65536)]), [range(0, 1000, 1), range(1, 100_000, 65536)]);
    }

    #[test]
    fn another_user_inside_takes_its_place_in_the_middle() {
        assert_eq!(
            full(1000, 1000, &[(100_000, 65536)]),
            [range(0, 100_000, 1000), range(1000, 1000, 1), range(1001, 101_000, 64536)]
        );
    }

    #[test]
    fn several_ranges_and_an_id_beyond_them() {
        assert_eq!(
            full(3, 7, &[(10, 2), (20, 2)]),
            [range(0, 10, 2), range(2, 20, 1), range(3, 7, 1), range(4, 21, 1)]
        );
        assert_eq!(full(70_000, 7, &[(10, 2)]), [range(0, 10, 2), range(70_000, 7, 1)]);
        assert_eq!(full(2, 7, &[(10, 2)]), [range(0, 10, 2), range(2, 7, 1)]);
        assert_eq!(full(0, 7, &[]), [range(0, 7, 1)]);
    }

    #[test]
    fn absurd_ranges_do_not_overflow() {
        let map = full(5, 7, &[(u32::MAX, u32::MAX), (1, u32::MAX), (2, u32::MAX)]);
        assert!(map.iter().all(|r| r.inside.checked_add(r.count).is_some()));
        assert!(covers(&map, 5));
    }

    #[test]
    fn subordinate_ranges_by_name_and_number() {
        let text = "alice:100000:65536\n1000:200000:10\n bob:1:1\nalice:x:1\nalice:5\nalice:7:0\n\n";
        assert_eq!(subordinate(text, Some("alice"), 1000), [(100_000, 65536), (200_000, 10)]);
        assert_eq!(subordinate(text, None, 5), []);
    }

    #[test]
    fn names() {
        let passwd = "root:x:0:0::/:/bin/sh\nbad\ntester:x:1001:1001::/home/t:/bin/sh\n";
        assert_eq!(name_of(passwd, 1001), Some("tester"));
        assert_eq!(name_of(passwd, 5), None);
    }

    #[test]
    fn own_map_unchanged() {
        assert_eq!(unchanged("         0     100000      65536\n"), [range(0, 0, 65536)]);
        assert_eq!(unchanged("junk\n"), []);
    }

    #[test]
    fn user_choices() {
        let ids = |uid, gid| Ok(UserChoice::Ids(Identity { uid, gid }));
        assert_eq!(parse_user("keep"), Ok(UserChoice::Keep));
        assert_eq!(parse_user("0"), ids(0, 0));
        assert_eq!(parse_user("1000"), ids(1000, 1000));
        assert_eq!(parse_user("1000:50"), ids(1000, 50));
        for bad in ["", "root", ":", "1:", ":1", "1:2:3", "-1", "+1", "4294967295", "4294967296", "1 "] {
            assert!(parse_user(bad).unwrap_err().contains(bad), "{bad}");
        }
    }
}
