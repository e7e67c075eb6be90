//! Numbers and names as people read them.

/// In cells without a value.
pub const ABSENT: &str = "–";

/// A value and its standard error to two significant digits of the error; small values in powers of ten.
pub fn with_error(value: f64, error: f64) -> String {
    if !value.is_finite() || !error.is_finite() {
        return format!("{value} ± {error}");
    }
    if value != 0.0 && value.abs() < 1e-3 {
        return format!("{value:.2e} ± {error:.0e}");
    }
    let digits = match error > 0.0 {
        true => (1 - error.log10().floor() as i64).clamp(0, 9) as usize,
        // Without an error, four digits after the point of a number near 1.
        false => 4,
    };
    format!("{value:.digits$} ± {error:.digits$}")
}

/// Models and texts without the folders that hold them: the last part of each path in a list; ids on the hub stay whole.
pub fn without_folders(names: &str) -> String {
    let last = |name: &str| {
        let is_path = name.starts_with(['/', '.', '~']) || name.matches('/').count() != 1;
        let end = name.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        // `repo/file.txt` is a path too; the dot of `org/Model-1.5B` begins no ending that a text has.
        let is_file = [".txt", ".json", ".jsonl", ".parquet", ".gguf"].iter().any(|e| end.ends_with(e));
        if (is_path || is_file) && !end.is_empty() { end.to_string() } else { name.to_string() }
    };
    names.split(',').map(last).collect::<Vec<_>>().join(", ")
}

/// Bytes in the unit that suits them.
pub fn bytes(n: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.iter().find(|(_, shift)| n >= 1 << shift) {
        Some((unit, shift)) => format!("{:.2} {unit}", n as f64 / (1u64 << shift) as f64),
        None => format!("{n} B"),
    }
}

/// Seconds in the unit that suits them.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

/// A number of a gate: short, and exact enough to be judged by.
pub fn number(value: Option<f64>) -> String {
    match value {
        None => "not measured".into(),
        Some(v) if v.fract() == 0.0 && v.abs() < 1e15 => format!("{v}"),
        Some(v) => {
            let digits = (5 - v.abs().log10().floor().clamp(-12.0, 5.0) as i64) as usize;
            format!("{v:.digits$}")
        }
    }
}

/// A divergence: three significant digits, no more zeros than they need.
pub fn nats(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    if !value.is_finite() || value.abs() < 1e-4 || value.abs() >= 1000.0 {
        return format!("{value:.1e}");
    }
    let digits = (2 - value.abs().log10().floor() as i64).clamp(0, 6) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

/// A fraction as per cent, two significant digits below ten.
pub fn percent(fraction: f64) -> String {
    let value = 100.0 * fraction;
    let digits = match value.abs() {
        v if !v.is_finite() || v >= 10.0 => 0,
        v if v >= 1.0 => 1,
        v if v >= 0.1 || v == 0.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{} %", if text == "-0" { "0" } else { text })
}

/// A change of perplexity: `+0.8 %`.
pub fn change(ratio: f64) -> String {
    let text = percent(ratio - 1.0);
    match text.strip_prefix('-') {
        Some(rest) => format!("−{rest}"),
        None => format!("+{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let cases = [
            ("wikitext", "wikitext"),
            ("Salesforce/wikitext", "Salesforce/wikitext"),
            ("org/Model-1.5B", "org/Model-1.5B"),
            ("/models/lab/", "lab"),
            ("./out/a.gguf", "a.gguf"),
            ("texts/web.txt,/data/code.txt", "web.txt, code.txt"),
            ("", ""),
        ];
        cases.iter().for_each(|(long, short)| assert_eq!(without_folders(long), *short));
    }

    #[test]
    fn figures() {
        assert_eq!(with_error(5.12345, 0.0321), "5.123 ± 0.032");
        assert_eq!(with_error(273.4456, 2.34), "273.4 ± 2.3");
        assert_eq!(with_error(0.0095, 0.00021), "0.00950 ± 0.00021");
        assert_eq!(with_error(1.0, 0.0), "1.0000 ± 0.0000");
        assert_eq!(with_error(3.973e-5, 7.6e-7), "3.97e-5 ± 8e-7");
        assert_eq!(with_error(0.0, 0.0), "0.0000 ± 0.0000");
        assert_eq!(with_error(12345.0, 321.0), "12345 ± 321");
        assert_eq!(bytes(4 << 30), "4.00 GiB");
        assert_eq!(bytes(17), "17 B");
        assert_eq!(duration(3.21), "3.2 s");
        assert_eq!(duration(59.96), "1 min 00 s");
        assert_eq!(duration(7320.0), "2 h 02 min");
        assert_eq!(number(Some(0.02751234)), "0.0275123");
        assert_eq!(number(Some(1.0042)), "1.00420");
        assert_eq!(number(Some(4294967296.0)), "4294967296");
        assert_eq!([0.0, 0.01234, 0.5, 12.0, 345.0, 2e-5].map(nats), ["0", "0.0123", "0.5", "12", "345", "2.0e-5"]);
        assert_eq!([0.0082, 0.25, 0.0, 1.5, -0.00000001].map(percent), ["0.82 %", "25 %", "0 %", "150 %", "0 %"]);
        assert_eq!([1.0082, 0.9918, 1.0].map(change), ["+0.82 %", "−0.82 %", "+0 %"]);
    }
}
