//! Peak memory of this process, as Linux counts it.

/// Starts counting the peak anew, where the system can.
pub fn reset_peak() {
    // "5" resets VmHWM; where that is not allowed, the peak since the process began is reported.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Largest resident size in bytes since the last reset; 0 where the system does not tell.
pub fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib: Option<u64> = line.and_then(|l| l.trim().strip_suffix("kB")).and_then(|n| n.trim().parse().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn peak_is_known_and_grows() {
        super::reset_peak();
        let before = super::peak_bytes();
        let block = vec![1u8; 64 << 20];
        assert!(block.iter().step_by(4096).map(|b| u64::from(*b)).sum::<u64>() > 0);
        assert!(super::peak_bytes() >= before + (48 << 20), "{before} then {}", super::peak_bytes());
    }
}
