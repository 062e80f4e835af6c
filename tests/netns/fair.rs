//! Nobody starves: one who asks beside a hundred downloads.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::tools::{PATIENCE, at, connect, echo_tcp, listen, serve};
use crate::world::{INET4, World, wait_for};

/// Downloads at full rate.
const BULK: usize = 100;
/// Questions of one byte.
const QUESTIONS: usize = 21;
/// Frames for the guest that may go between a question and its answer: the turn that has begun, the next, in which host
/// sockets come before the question's TAP, and the one that finds the answer. In a turn each download moves one super-frame
/// (`LEAST_SHARE` of runtime::engine), two where the ring wraps, and again as much where its acknowledgement makes room.
const TURNS: usize = 3 * BULK * 3;

/// Frames that came to the calling thread's eth0, super-frames counted once.
fn frames() -> usize {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).expect("eth0");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_question_beside_a_hundred_downloads_is_answered_within_three_turns() {
    World::run(|w| {
        let over = Arc::new(AtomicBool::new(false));
        let sending = Arc::clone(&over);
        serve(listen(&w.internet, at(INET4, 7000)), move |mut stream: TcpStream, _| {
            let block = vec![0; 256 * 1024];
            while !sending.load(Ordering::Relaxed) && stream.write_all(&block).is_ok() {}
        });
        echo_tcp(&w.internet, at(INET4, 7001));
        let guest = w.guest::<&str>(&[]);
        let taken: Arc<Vec<AtomicU64>> = Arc::new((0..BULK).map(|_| AtomicU64::new(0)).collect());
        let downloads: Vec<_> = (0..BULK)
            .map(|n| {
                let mut stream = connect(&guest.ns, at(INET4, 7000)).unwrap();
                let (taken, over) = (Arc::clone(&taken), Arc::clone(&over));
                thread::spawn(move || {
                    let mut room = vec![0; 256 * 1024];
                    while !over.load(Ordering::Relaxed) {
                        match stream.read(&mut room) {
                            Ok(got) if got > 0 => taken[n].fetch_add(got as u64, Ordering::Relaxed),
                            _ => break,
                        };
                    }
                })
            })
            .collect();
        let bytes = || taken.iter().map(|n| n.load(Ordering::Relaxed)).collect::<Vec<_>>();
        wait_for("every download", PATIENCE, || bytes().iter().all(|&n| n > 0));
        let before = bytes();
        let mut asking = connect(&guest.ns, at(INET4, 7001)).unwrap();
        asking.set_nodelay(true).unwrap();
        asking.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut waits: Vec<usize> = guest.run(|| {
            (0..QUESTIONS)
                .map(|_| {
                    thread::sleep(Duration::from_millis(20));
                    let asked = frames();
                    asking.write_all(b"?").unwrap();
                    asking.read_exact(&mut [0]).expect("an answer");
                    frames() - asked
                })
                .collect()
        });
        let moved: Vec<u64> = bytes().iter().zip(&before).map(|(now, before)| now - before).collect();
        over.store(true, Ordering::Relaxed);
        drop(asking);
        for download in downloads {
            download.join().unwrap();
        }
        waits.sort_unstable();
        let (median, most) = (waits[QUESTIONS / 2], waits[QUESTIONS - 1]);
        let (all, least) = (moved.iter().sum::<u64>() >> 20, moved.iter().min().unwrap() >> 10);
        println!(
            "{median} frames before an answer, {most} at most; {all} MiB meanwhile, {least} KiB for the slowest download"
        );
        // The one who asks is a thread among a hundred on few cores, and single answers lie about until it runs.
        assert!(median <= TURNS, "{median} frames went before an answer, {most} at most; {all} MiB moved");
        assert!(all >= BULK as u64, "the downloads moved {all} MiB, which is no load");
        assert!(moved.iter().all(|&n| n > 0), "a download starves: {moved:?}");
    });
}
