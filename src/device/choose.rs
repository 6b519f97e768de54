//! Which device is opened.

use super::{DEADLINE, Device, DeviceError, DeviceInfo, Found, Programs, devices, source};

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
    devices().ok()?.iter().find(|found| found.info.helps().is_ok()).map(open_found)
}

fn open_found(found: &Found) -> Result<Device, DeviceError> {
    Device::new(found.open(&source::source(), &Programs::of_user(), DEADLINE)?)
}

impl DeviceInfo {
    /// Whether it is taken where nobody asks for it.
    ///
    /// # Errors
    /// Why it is not.
    pub fn helps(&self) -> Result<(), String> {
        match &self.unfit {
            Some(why) => Err(why.clone()),
            None if self.is_cpu => Err("it is the CPU".to_owned()),
            // It reads weights as fast as the CPU does, which computes while it would be waited for.
            None if self.shares_memory => Err("its memory is the CPU's".to_owned()),
            None => Ok(()),
        }
    }
}
