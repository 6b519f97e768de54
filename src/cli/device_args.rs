//! `--gpu` and `--vram`: which device takes part of a model, and how much of its memory.

use std::str::FromStr;
use std::sync::Arc;

use clap::Args;

use super::engine_args::memory_size;
use super::output::tell;
use super::{CliError, safe_text};
use crate::device::{self, Device, DeviceError};

#[derive(Args, Clone, Debug, Default)]
pub struct DeviceArgs {
    /// Graphics card that takes part of the model: auto (the first that helps, where there is one), off, or a
    /// number of `wayinfer devices`. Changes no result
    #[arg(long, value_name = "WHICH", default_value = "auto", env = "WAYINFER_GPU")]
    pub gpu: Gpu,

    /// Memory of the card that a model may take, in GiB (8G) or MiB (800M) [default: nearly all of it]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = memory_size)]
    #[arg(env = "WAYINFER_VRAM")]
    pub vram: Option<u64>,
}

/// Which device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gpu {
    #[default]
    Auto,
    Off,
    Number(usize),
}

impl FromStr for Gpu {
    type Err = String;

    fn from_str(text: &str) -> Result<Gpu, String> {
        match text {
            "auto" => Ok(Gpu::Auto),
            "off" => Ok(Gpu::Off),
            number => number
                .parse()
                .map(Gpu::Number)
                .map_err(|_| "auto, off or the number of a device: `wayinfer devices` lists them".to_owned()),
        }
    }
}

/// What is left of a device's memory to its display and to what kernels need.
const HEADROOM_SHARE: u64 = 16;
const LEAST_HEADROOM: u64 = 256 << 20;

/// Bytes of a model below which a card is not taken where nobody asks for it: a product with a matrix of a
/// megabyte takes the CPU as long as the way to a card and back.
const LEAST_MODEL: u64 = 256 << 20;

/// A device, and how much of its memory a model may take.
#[derive(Clone, Debug)]
pub struct ForWeights {
    pub device: Arc<Device>,
    pub bytes: u64,
}

impl DeviceArgs {
    /// The device that was asked for, or the one that is best for a model of so many bytes; `None` where the
    /// CPU is to do it all. A card that cannot be used is told of, and is no error.
    ///
    /// # Errors
    /// A number that no device has.
    pub fn open(&self, model_bytes: u64) -> Result<Option<ForWeights>, CliError> {
        let opened = match self.gpu {
            Gpu::Off => return Ok(None),
            Gpu::Auto if model_bytes < LEAST_MODEL => return Ok(None),
            Gpu::Auto => device::open_best(),
            Gpu::Number(number) => Some(device::open(number)),
        };
        match opened {
            None => Ok(None),
            Some(Ok(device)) => {
                tell_of_other_bits(&device);
                let all = device.info().memory_bytes;
                let most = all.saturating_sub((all / HEADROOM_SHARE).max(LEAST_HEADROOM).min(all / 2));
                Ok(Some(ForWeights { bytes: self.vram.unwrap_or(most).min(all), device: Arc::new(device) }))
            }
            Some(Err(error @ DeviceError::NoSuchDevice { .. })) => {
                Err(CliError::from(error).hint("`wayinfer devices` lists them"))
            }
            Some(Err(error)) => {
                tell_of_failure(&error);
                Ok(None)
            }
        }
    }
}

/// Says which types of weights and which operations a device does not compute as the CPU does: they stay with
/// the CPU.
fn tell_of_other_bits(device: &Device) {
    let wrong = device.verdicts().iter().filter(|verdict| verdict.fault.is_some());
    let mut wrong: Vec<String> = wrong.map(|verdict| verdict.ty.to_string()).collect();
    let name = safe_text::escape(&device.info().name);
    if wrong.len() == device.verdicts().len() {
        tell!("warning: {name}: computes nothing as the CPU does: it is not used");
        return;
    }
    let operations = device.ops().into_iter().flat_map(|ops| ops.verdicts());
    let operations = operations.filter(|verdict| verdict.fault.is_some());
    wrong.extend(operations.map(|verdict| verdict.name.to_owned()));
    if !wrong.is_empty() {
        tell!("warning: {name}: computes {} otherwise than the CPU, which does it alone", wrong.join(", "));
    }
}

/// Says that a device is not used, or no more.
pub fn tell_of_failure(error: &DeviceError) {
    let error = error.to_string();
    tell!("warning: {}: the CPU computes without it", safe_text::escape(&error));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_by_its_number() {
        assert_eq!(["auto", "off", "3"].map(str::parse), [Gpu::Auto, Gpu::Off, Gpu::Number(3)].map(Ok));
        for wrong in ["", "on", "-1", "1.5"] {
            assert!(wrong.parse::<Gpu>().unwrap_err().contains("wayinfer devices"), "{wrong}");
        }
    }
}
