//! Which device is opened.

use super::{DEADLINE, Device, DeviceError, Found, Programs, devices, source};

/// Opens the device of this number.
///
/// # Errors
/// Where there is none, or it cannot be opened.
pub fn open(number: usize) -> Result<Device, DeviceError> {
    let found = devices()?;
    let found = found.get(number).ok_or(DeviceError::NoSuchDevice { number })?;
    open_found(found)
}

/// Opens the device that helps most, where there is one that helps.
pub fn open_best() -> Option<Result<Device, DeviceError>> {
    devices().ok()?.iter().find(|found| found.suits().is_ok()).map(open_found)
}

fn open_found(found: &Found) -> Result<Device, DeviceError> {
    Device::new(found.open(&source::source(), &Programs::of_user(), DEADLINE)?)
}
