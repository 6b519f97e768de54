//! The devices of this machine, and how they are opened.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::open::Open;
use super::programs::Programs;
use super::{DeviceError, DeviceInfo, Driver, cuda, faulty, opencl};

/// How long a device may take for one step, unless it is said otherwise.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Drivers are asked for devices and opened by one thread at a time: they set themselves up at the first
/// call, and PoCL 3.1 crashes when a second one comes meanwhile.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device that was found.
#[derive(Clone, Debug)]
pub struct Found {
    pub info: DeviceInfo,
    by: By,
}

#[derive(Clone, Copy, Debug)]
enum By {
    Cuda(cuda::Ordinal),
    OpenCl(opencl::Id),
}

/// The devices of this machine, CUDA's first; a card that two APIs reach is there once. Who is asked for a
/// device by its index means the index here.
///
/// # Errors
/// [`DeviceError::NoDriver`], with what is not there.
pub fn devices() -> Result<Vec<Found>, DeviceError> {
    let _one = one_at_a_time();
    let (by_cuda, by_opencl) = (cuda::devices(), opencl::devices());
    if let (Err(DeviceError::NoDriver(cuda)), Err(DeviceError::NoDriver(opencl))) = (&by_cuda, &by_opencl) {
        return Err(DeviceError::NoDriver(format!("{opencl}; {cuda}")));
    }
    let by_cuda = by_cuda.unwrap_or_default().into_iter().map(|(id, info)| Found { info, by: By::Cuda(id) });
    let by_opencl =
        by_opencl.unwrap_or_default().into_iter().map(|(id, info)| Found { info, by: By::OpenCl(id) });
    Ok(merged(by_cuda.chain(by_opencl).collect()))
}

/// Of each card the first that is fit, or the first.
fn merged(found: Vec<Found>) -> Vec<Found> {
    let mut kept: Vec<Found> = Vec::new();
    for found in found {
        let same = kept.iter_mut().find(|kept| is_same_card(&kept.info, &found.info));
        match same {
            Some(kept) if kept.info.unfit.is_some() && found.info.unfit.is_none() => *kept = found,
            Some(_) => {}
            None => kept.push(found),
        }
    }
    kept
}

fn is_same_card(a: &DeviceInfo, b: &DeviceInfo) -> bool {
    if a.is_cpu || b.is_cpu {
        return false;
    }
    match (a.pci, b.pci) {
        (Some(a), Some(b)) => a == b,
        // APIs count a card's memory differently, by some percent.
        _ => {
            a.api != b.api
                && a.name == b.name
                && a.memory_bytes.abs_diff(b.memory_bytes) < a.memory_bytes / 16
        }
    }
}

impl Found {
    /// Whether it is used where nobody asks for a certain one; if not, why.
    ///
    /// # Errors
    /// Why not.
    pub fn suits(&self) -> Result<(), &str> {
        match &self.info.unfit {
            Some(unfit) => Err(unfit),
            None if self.info.is_cpu => Err("is the CPU, which our own kernels use better"),
            None if self.info.shares_memory => Err("has the CPU's memory, which it reads no faster"),
            None => Ok(()),
        }
    }

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
        let _one = one_at_a_time();
        let info = self.info.clone();
        let driver: Arc<dyn Driver> = match self.by {
            By::Cuda(id) => Arc::new(Open::new(cuda::open(id, info, source, programs)?, deadline)?),
            By::OpenCl(id) => Arc::new(Open::new(opencl::open(id, info, source, programs)?, deadline)?),
        };
        faulty::wrapped(driver)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::info;
    use super::super::{Api, PciPlace};
    use super::*;

    fn found(api: Api, name: &str, bus: Option<u32>, gib: u64) -> Found {
        let pci = bus.map(|bus| PciPlace { domain: 0, bus, device: 0 });
        let info = DeviceInfo { api, pci, memory_bytes: gib << 30, ..info(name) };
        Found { info, by: By::Cuda(cuda::Ordinal::default()) }
    }

    fn kept(found: &[Found]) -> Vec<(Api, &str)> {
        found.iter().map(|found| (found.info.api, &*found.info.name)).collect()
    }

    #[test]
    fn a_card_that_two_apis_reach_is_there_once() {
        use Api::{Cuda, OpenCl};
        let all = merged(vec![
            found(Cuda, "a", Some(1), 24),
            found(Cuda, "a", Some(2), 24),
            found(OpenCl, "a", Some(2), 23),
            found(OpenCl, "a", Some(1), 23),
            found(OpenCl, "b", Some(3), 16),
        ]);
        assert_eq!(kept(&all), [(Cuda, "a"), (Cuda, "a"), (OpenCl, "b")]);
        let by_name = merged(vec![found(Cuda, "a", Some(1), 24), found(OpenCl, "a", None, 23)]);
        assert_eq!(kept(&by_name), [(Cuda, "a")]);
        let other = merged(vec![found(Cuda, "a", Some(1), 24), found(OpenCl, "a", None, 12)]);
        assert_eq!(other.len(), 2, "of another size");
        let twins = merged(vec![found(OpenCl, "a", None, 24), found(OpenCl, "a", None, 24)]);
        assert_eq!(twins.len(), 2, "one API names each card once");
    }

    #[test]
    fn of_two_ways_to_a_card_the_one_that_works_is_kept() {
        let mut without_compiler = found(Api::Cuda, "a", Some(1), 24);
        without_compiler.info.unfit = Some("has no compiler".to_owned());
        let all = merged(vec![without_compiler.clone(), found(Api::OpenCl, "a", Some(1), 24)]);
        assert_eq!(kept(&all), [(Api::OpenCl, "a")]);
        assert_eq!(all[0].suits(), Ok(()));
        let alone = merged(vec![without_compiler]);
        assert_eq!(alone[0].suits(), Err("has no compiler"));
    }
}
