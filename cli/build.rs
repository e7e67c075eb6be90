//! Tells the program which commit it is built from: `BITSMITH_COMMIT` if it is set, or what git says.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=BITSMITH_COMMIT");
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_string()).filter(|text| !text.is_empty())
    };
    // The branch's file changes with every commit, HEAD with every other branch; packed references come and go.
    let branch = git(&["symbolic-ref", "-q", "HEAD"]);
    for name in ["HEAD"].into_iter().chain(branch.as_deref()) {
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|p| std::path::Path::new(p).exists()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    if let Some(commit) = std::env::var("BITSMITH_COMMIT").ok().filter(|c| !c.is_empty()).or_else(|| git(&["rev-parse", "HEAD"]))
    {
        println!("cargo:rustc-env=BITSMITH_COMMIT={commit}");
    }
}
