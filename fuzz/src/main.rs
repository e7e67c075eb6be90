//! One fuzzer for all targets: `BITSMITH_FUZZ_TARGET` names one. With `BITSMITH_FUZZ_SEEDS` it only writes that target's seeds.
#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use std::sync::OnceLock;
use targets::Target;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

fn target() -> &'static Target {
    TARGET.get_or_init(|| {
        let name = std::env::var("BITSMITH_FUZZ_TARGET").expect("BITSMITH_FUZZ_TARGET names a target");
        let target = targets::find(&name).unwrap_or_else(|| panic!("there is no target {name}"));
        if let Ok(folder) = std::env::var("BITSMITH_FUZZ_SEEDS") {
            std::fs::create_dir_all(&folder).expect("the folder of seeds can be made");
            for (i, seed) in (target.seeds)().into_iter().enumerate() {
                std::fs::write(format!("{folder}/seed-{i:03}"), seed).expect("seeds can be written");
            }
            std::process::exit(0);
        }
        // A panic that is caught and told as an error is none; others reach the fuzzer's own hook.
        targets::quiet_guarded_panics();
        target
    })
}

fuzz_target!(init: {
    target();
}, |data: &[u8]| (target().run)(data));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    match target().mutate {
        // Every second time as the bytes come.
        Some(mutate) if seed % 2 == 0 => mutate(data, size, max_size, seed),
        _ => fuzzer_mutate(data, size, max_size),
    }
});
