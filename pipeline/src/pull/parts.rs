//! A large file over several connections. Its parts come side by side and are given in order, so that the file on the disk is whole up to
//! its end at any moment, and its hash runs along.

use super::client::Failure;
use std::ops::Range;
use std::sync::mpsc::sync_channel;

/// Parts that are under way, or wait in memory for their turn, at the same time.
const CONNECTIONS: u64 = 4;

/// Calls `take` with the bytes of the file from `range.start` to `range.end`, in order, in parts of `part` bytes that `fetch` gets, several
/// at a time. Ends with the first failure of either.
pub fn in_order(
    range: Range<u64>,
    part: u64,
    fetch: impl Fn(Range<u64>) -> Result<Vec<u8>, Failure> + Sync,
    mut take: impl FnMut(Vec<u8>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let count = (range.end - range.start).div_ceil(part);
    let lanes = CONNECTIONS.min(count);
    let bounds = |i: u64| range.start + i * part..(range.start + (i + 1) * part).min(range.end);
    let (fetch, bounds) = (&fetch, &bounds);
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes)
            .map(|lane| {
                let (give, get) = sync_channel(0);
                scope.spawn(move || {
                    for i in (lane..count).step_by(CONNECTIONS as usize) {
                        let got = fetch(bounds(i));
                        let failed = got.is_err();
                        // Nobody waits any more if another part failed.
                        if give.send(got).is_err() || failed {
                            break;
                        }
                    }
                });
                get
            })
            .collect();
        for i in 0..count {
            let got = lanes[(i % CONNECTIONS) as usize].recv();
            take(got.unwrap_or_else(|_| Err(Failure::passing("a connection ended")))?)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use std::time::Duration;

    /// Later parts are quicker.
    fn slow(range: Range<u64>) -> Vec<u8> {
        std::thread::sleep(Duration::from_millis(if (range.start / 10).is_multiple_of(3) { 5 } else { 0 }));
        range.map(|i| i as u8).collect()
    }

    #[test]
    fn parts_come_in_order_whatever_their_number() {
        for (start, end) in [(0, 0), (0, 1), (0, 10), (3, 25), (0, 200), (7, 98)] {
            let mut all = Vec::new();
            let take = |bytes: Vec<u8>| {
                all.extend(bytes);
                Ok(())
            };
            in_order(start..end, 10, |range| Ok(slow(range)), take).unwrap();
            assert!(all.iter().map(|b| u64::from(*b)).eq(start..end), "{start} {end}");
        }
    }

    #[test]
    fn a_failure_ends_it_after_what_came_before() {
        let (asked, mut all) = (AtomicU64::new(0), 0);
        let fetch = |range: Range<u64>| {
            asked.fetch_add(1, SeqCst);
            if range.start == 50 { Err(Failure::passing("no")) } else { Ok(slow(range)) }
        };
        let take = |bytes: Vec<u8>| {
            all += bytes.len();
            Ok(())
        };
        let failure = in_order(0..10_000, 10, fetch, take).unwrap_err();
        assert!(failure.retry.is_some());
        assert_eq!(all, 50);
        assert!(asked.into_inner() < 20);
        assert!(in_order(0..10_000, 10, |range| Ok(slow(range)), |_| Err(Failure::passing("full"))).is_err());
    }
}
