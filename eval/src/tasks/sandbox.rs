//! Programs written by models, run where they can do no harm: Linux namespaces without network and with nothing of this machine's files
//! but read-only system folders, limits on memory, time and file sizes (`sandbox.sh`). Where that cannot be had, nothing is run.

use bitsmith_formats::{Error, Result};
use bitsmith_runtime::sampler::Rng;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Seconds of processor time that a program may take. HumanEval's own harness lets it run so long by the clock, which depends on what
/// else the machine does.
const SECONDS: u32 = 3;
/// Seconds by the clock, for programs that wait.
const WAIT: u32 = 60;
const MEMORY: u64 = 1 << 30;

/// A place to run Python programs.
#[derive(Debug)]
pub struct Sandbox {
    root: TempDir,
    python: PathBuf,
    prefix: PathBuf,
}

fn refused(why: impl std::fmt::Display) -> Error {
    Error::unsupported(format!("generated programs cannot be run safely here: {why}"))
        .hint("this needs Linux with unprivileged user namespaces, unshare, prlimit (util-linux) and Python 3; without --allow-code-execution programs are only written down")
}

impl Sandbox {
    /// Finds Python and tries the sandbox out. Errors: unsupported, with the reason, where it does not work or does not hold.
    pub fn new() -> Result<Self> {
        if !cfg!(target_os = "linux") {
            return Err(refused("there are no Linux namespaces"));
        }
        let ask = "import os, sys; print(os.path.realpath(sys.executable)); print(os.path.realpath(sys.base_prefix))";
        let output = Command::new("python3").args(["-I", "-c", ask]).output().map_err(|e| refused(format!("python3: {e}")))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let [python, prefix] = text.lines().collect::<Vec<_>>()[..] else { return Err(refused("python3 does not run")) };
        let root = tempfile::tempdir().map_err(|e| Error::write(std::env::temp_dir(), e))?;
        let sandbox = Sandbox { root, python: python.into(), prefix: prefix.into() };
        let (passed, said) = sandbox.run("assert 1 + 1 == 2\n")?;
        if !passed {
            return Err(refused(said.lines().last().unwrap_or("it does not start")));
        }
        let canary = sandbox.root.path().join("outside");
        std::fs::write(&canary, "").map_err(|e| Error::write(&canary, e))?;
        let escape = format!(
            "import os, socket\nfor go in (lambda: os.stat({:?}), lambda: open('/usr/x', 'w'), lambda: socket.create_connection(('192.0.2.1', 80), 1)):\n    \
             try:\n        go()\n    except OSError as e:\n        assert e.errno in (2, 30, 101), e\n    else:\n        raise Exception\n",
            canary.display().to_string()
        );
        match sandbox.run(&escape)? {
            (true, _) => Ok(sandbox),
            (false, said) => Err(refused(format!("the sandbox does not hold {}", said.lines().last().unwrap_or_default()))),
        }
    }

    /// Whether the program runs to its end without an exception, in time.
    pub fn passes(&self, program: &str) -> Result<bool> {
        Ok(self.run(program)?.0)
    }

    fn run(&self, program: &str) -> Result<(bool, String)> {
        // Not to be guessed by the program, from which it is hidden.
        let seed = program.bytes().fold(u64::from(std::process::id()), |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let token = format!("{:016x}", Rng::new(seed).next_u64());
        let mut command = Command::new("unshare");
        command.args([
            "--user",
            "--map-root-user",
            "--mount",
            "--net",
            "--pid",
            "--ipc",
            "--uts",
            "--fork",
            "--kill-child",
            "--",
        ]);
        command.args(["/bin/sh", "-c", include_str!("sandbox.sh"), "sandbox"]).arg(self.root.path());
        command.arg(&self.python).arg(&self.prefix).args([
            token.clone(),
            SECONDS.to_string(),
            WAIT.to_string(),
            MEMORY.to_string(),
        ]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| refused(format!("unshare: {e}")))?;
        if let Some(mut input) = child.stdin.take() {
            // A program that does not start does not read either; its exit says so.
            let _ = input.write_all(program.as_bytes());
        }
        let output = child.wait_with_output().map_err(|e| refused(format!("unshare: {e}")))?;
        let passed = output.status.success() && output.stdout.ends_with(token.as_bytes());
        Ok((passed, String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_pass_fail_and_do_no_harm() {
        let sandbox = match Sandbox::new() {
            Ok(sandbox) => sandbox,
            // Not here: then it must say so and offer a way.
            Err(e) => {
                assert_eq!(e.kind, bitsmith_formats::ErrorKind::Unsupported);
                assert!(e.hint.unwrap().contains("namespaces"));
                return;
            }
        };
        for (program, passes) in [
            ("def f(x):\n    return x + 1\nassert f(1) == 2\nprint('noise')\n", true),
            ("def f(x):\n    return x\nassert f(1) == 2\n", false),
            ("import os\nos._exit(0)\n", false),
            ("import sys\nsys.exit(0)\n", false),
            ("def f(:\n", false),
            ("bytearray(4 << 30)\n", false),
            ("open('/tmp/x', 'w').write('x' * (2 << 20))\n", false),
            ("open('/tmp/x', 'w').write('x')\n", true),
        ] {
            assert_eq!(sandbox.passes(program).unwrap(), passes, "{program}");
        }
        let start = std::time::Instant::now();
        assert!(!sandbox.passes("while True:\n    pass\n").unwrap());
        assert!(start.elapsed().as_secs() < u64::from(WAIT));
    }
}
