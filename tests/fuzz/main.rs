//! The fuzzer's targets without the fuzzer: everything that ever crashed one, and seeds with a number of mutations that is always the same.

#[path = "../../fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};
use targets::{TARGETS, Target};

/// Mutations of each seed.
const MUTATIONS: u32 = 300;
/// A parser that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(2);

/// Runs an input; what went wrong, if anything.
fn fails(target: &Target, input: &[u8]) -> Option<String> {
    let start = Instant::now();
    let ran = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    match ran {
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(|s| s.to_string()));
            Some(text.unwrap_or_default())
        }
        Ok(()) if start.elapsed() > LIMIT => {
            // A busy machine gets a second chance.
            let again = Instant::now();
            (target.run)(input);
            (again.elapsed() > LIMIT).then(|| format!("took {:?}", again.elapsed()))
        }
        Ok(()) => None,
    }
}

/// A few bytes changed, cut out or doubled; or what the target itself has for mutations.
fn mutated(target: &Target, seed: &[u8], number: u32) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = |n: usize| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as usize % n.max(1)
    };
    let mut bytes = seed.to_vec();
    if let (Some(mutate), 0) = (target.mutate, number % 2) {
        let size = bytes.len();
        bytes.resize(size + 64, 0);
        let used = mutate(&mut bytes, size, size + 64, number);
        bytes.truncate(used);
        return bytes;
    }
    if bytes.is_empty() {
        return bytes;
    }
    for _ in 0..1 + next(4) {
        let (at, len) = (next(bytes.len()), 1 + next(8));
        let end = (at + len).min(bytes.len());
        match next(5) {
            0 => bytes[at..end].iter_mut().for_each(|b| *b ^= 1 << next(8)),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            3 => bytes.truncate(at),
            _ => bytes[at..end].iter_mut().for_each(|b| *b = [0, 1, 0x7f, 0x80, 0xff, b'9', b'"', b'{'][next(8)]),
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

/// Keeps an input that failed where it can be looked at.
fn keep(target: &Target, input: &[u8]) -> String {
    let path = std::env::temp_dir().join(format!("bitsmith-fuzz-{}-{}", target.name, std::process::id()));
    fs::write(&path, input).unwrap();
    path.display().to_string()
}

#[test]
fn what_crashed_once() {
    for target in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/regressions").join(target.name);
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if let Some(why) = fails(target, &fs::read(&path).unwrap()) {
                panic!("{}: {why}", path.display());
            }
        }
    }
}

/// Without guidance, but as many as are wanted: `BITSMITH_FUZZ_RUNS=100000 cargo test --release --test fuzz -- --ignored --nocapture`.
#[test]
#[ignore = "as long as one wants; `fuzz/run.sh` is guided by coverage"]
fn many_mutations() {
    let runs: u32 = std::env::var("BITSMITH_FUZZ_RUNS").map_or(10_000, |n| n.parse().unwrap());
    let only = std::env::var("BITSMITH_FUZZ_TARGET").ok();
    for target in TARGETS.iter().filter(|t| only.as_ref().is_none_or(|o| o == t.name)) {
        let (start, seeds) = (Instant::now(), (target.seeds)());
        for number in 1..=runs {
            // Mutations of mutations reach further.
            let seed = &seeds[number as usize % seeds.len()];
            let input = (0..1 + number % 4).fold(seed.clone(), |input, round| match input.is_empty() {
                true => input,
                false => mutated(target, &input, number.wrapping_mul(2_654_435_761).wrapping_add(round)),
            });
            if let Some(why) = fails(target, &input) {
                panic!("{}, mutation {number}: {why}: {}", target.name, keep(target, &input));
            }
        }
        eprintln!("{}: {runs} in {:.0} s", target.name, start.elapsed().as_secs_f64());
    }
}

#[test]
fn seeds_and_mutations() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{}", target.name);
        for (s, seed) in seeds.iter().enumerate() {
            for number in 0..=MUTATIONS {
                // The seed itself comes first.
                let input = if number == 0 { seed.clone() } else { mutated(target, seed, number + 1000 * s as u32) };
                if let Some(why) = fails(target, &input) {
                    panic!("{}, seed {s}, mutation {number}: {why}: {}", target.name, keep(target, &input));
                }
            }
        }
    }
}
