//! The devices of this machine, and how they are opened.

use std::sync::Arc;
use std::time::Duration;

use super::open::Open;
use super::programs::Programs;
use super::{DeviceError, DeviceInfo, Driver, opencl};

/// How long a device may take for one step, unless it is said otherwise.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A device that was found.
#[derive(Clone, Debug)]
pub struct Found {
    pub info: DeviceInfo,
    by: By,
}

#[derive(Clone, Debug)]
enum By {
    OpenCl(opencl::Id),
}

/// The devices of this machine, those of the best API first. Who is asked for a device by its index means the
/// index here.
///
/// # Errors
/// [`DeviceError::NoDriver`], with what is not there.
pub fn devices() -> Result<Vec<Found>, DeviceError> {
    let found = opencl::devices()?;
    Ok(found.into_iter().map(|(id, info)| Found { info, by: By::OpenCl(id) }).collect())
}

impl Found {
    /// Opens it, with kernels of `source`; each step may take as long as `deadline`.
    ///
    /// # Errors
    /// A device that is not fit or cannot be opened, and [`DeviceError::Build`] where the source does not
    /// compile.
    pub fn open(
        &self,
        source: &str,
        programs: &Programs,
        deadline: Duration,
    ) -> Result<Arc<dyn Driver>, DeviceError> {
        match self.by {
            By::OpenCl(id) => {
                Ok(Arc::new(Open::new(opencl::open(id, self.info.clone(), source, programs)?, deadline)?))
            }
        }
    }
}
