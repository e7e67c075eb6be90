//! Where tensors live and are computed with: the CPU, or a device that this build supports through candle.

use bitsmith_formats::{Error, Result};
pub use candle_core::Device;

/// Opens a device by its name: `cpu`, `cuda`, `cuda:N` or `metal`. An error tells bad names from devices that this build does not
/// support and from those that are not there.
pub fn open(name: &str) -> Result<Device> {
    let unknown = || Error::usage(format!("`{name}` is not a device")).hint("devices are cpu, cuda[:N] and metal");
    match name.split_once(':').unwrap_or((name, "")) {
        ("cpu", "") if name == "cpu" => Ok(Device::Cpu),
        ("metal", "") if name == "metal" => found("metal", cfg!(feature = "metal"), || Device::new_metal(0)),
        ("cuda", number) => {
            let number = if name == "cuda" { 0 } else { number.parse::<u32>().map_err(|_| unknown())? as usize };
            found("cuda", cfg!(feature = "cuda"), || Device::new_cuda(number))
        }
        _ => Err(unknown()),
    }
}

/// `cuda` or `metal`; nothing for the CPU.
pub fn kind(device: &Device) -> Option<&'static str> {
    match device {
        Device::Cpu => None,
        Device::Cuda(_) => Some("cuda"),
        Device::Metal(_) => Some("metal"),
    }
}

fn found(kind: &str, supported: bool, open: impl FnOnce() -> candle_core::Result<Device>) -> Result<Device> {
    let name = if kind == "cuda" { "CUDA" } else { "Metal" };
    if !supported {
        let build = format!("install it with `cargo install --features {kind}`, or use --device cpu");
        return Err(Error::unsupported(format!("this build has no {name} support")).hint(build));
    }
    open().map_err(|e| {
        Error::unsupported(format!("no such {name} device can be used: {e}"))
            .hint("use --device cpu, or another number")
            .with_source(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_formats::ErrorKind;

    #[test]
    fn names() {
        assert!(open("cpu").unwrap().is_cpu());
        for bad in ["tpu", "", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "metal:", "metal:0"] {
            assert_eq!(open(bad).unwrap_err().kind, ErrorKind::Usage, "{bad}");
        }
        for (feature, supported, names) in
            [("cuda", cfg!(feature = "cuda"), &["cuda", "cuda:1"][..]), ("metal", cfg!(feature = "metal"), &["metal"])]
        {
            for name in names.iter().filter(|_| !supported) {
                let e = open(name).unwrap_err();
                assert_eq!(e.kind, ErrorKind::Unsupported);
                assert!(e.hint.unwrap().contains(&format!("--features {feature}")));
            }
        }
    }
}
