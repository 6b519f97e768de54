//! A device that fails when told to, for tests. `WAYINFER_DEVICE_FAULT=launch:120:lost` lets the 120th launch
//! and all that comes after it fail; operations are `allocate`, `write`, `launch` and `read`, faults `lost`,
//! `timeout` and `memory`. With `used:` in front, operations are counted from the first copy of weights on,
//! behind the test of the kernels. Builds without debug assertions know nothing of it.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{DEADLINE, DeviceError, DeviceInfo, Driver, Handle, Launch, Queue};

const VARIABLE: &str = "WAYINFER_DEVICE_FAULT";

/// What may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Allocate,
    Write,
    Launch,
    Read,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Of this operation alone; a device stays what it was.
    OutOfMemory,
    Lost,
    Timeout,
}

/// Which operation fails, counted from 1, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    operation: Operation,
    at: u64,
    kind: Kind,
    /// Whether what was done before there were weights is not counted.
    once_used: bool,
}

impl Plan {
    /// As `operation:count:kind` or `used:operation:count:kind`.
    fn parse(text: &str) -> Option<Plan> {
        let rest = text.strip_prefix("used:");
        let mut words = rest.unwrap_or(text).split(':');
        let operation = match words.next()? {
            "allocate" => Operation::Allocate,
            "write" => Operation::Write,
            "launch" => Operation::Launch,
            "read" => Operation::Read,
            _ => return None,
        };
        let at = words.next()?.parse().ok().filter(|at| *at > 0)?;
        let kind = match words.next()? {
            "memory" => Kind::OutOfMemory,
            "lost" => Kind::Lost,
            "timeout" => Kind::Timeout,
            _ => return None,
        };
        words.next().is_none().then_some(Plan { operation, at, kind, once_used: rest.is_some() })
    }
}

/// A driver that fails as planned.
#[derive(Debug)]
struct Faulty {
    driver: Arc<dyn Driver>,
    plan: Plan,
    done: AtomicU64,
    is_counting: AtomicBool,
    is_lost: AtomicBool,
}

/// The driver, or one that fails as the environment says.
///
/// # Errors
/// What the environment says is not a plan.
pub(super) fn wrapped(driver: Arc<dyn Driver>) -> Result<Arc<dyn Driver>, DeviceError> {
    match env::var(VARIABLE) {
        Ok(text) if cfg!(debug_assertions) => match Plan::parse(&text) {
            Some(plan) => Ok(Arc::new(Faulty::new(driver, plan))),
            None => Err(DeviceError::NoDriver(format!("{VARIABLE}={text} is not like launch:120:lost"))),
        },
        _ => Ok(driver),
    }
}

impl Faulty {
    fn new(driver: Arc<dyn Driver>, plan: Plan) -> Faulty {
        let is_counting = AtomicBool::new(!plan.once_used);
        Faulty { driver, plan, done: AtomicU64::new(0), is_counting, is_lost: AtomicBool::new(false) }
    }

    fn check(&self, operation: Operation, bytes: usize) -> Result<(), DeviceError> {
        let counted = operation == self.plan.operation && self.is_counting.load(Ordering::Relaxed);
        let is_now = counted && self.done.fetch_add(1, Ordering::Relaxed) + 1 == self.plan.at;
        if is_now && self.plan.kind != Kind::OutOfMemory {
            self.is_lost.store(true, Ordering::Relaxed);
        }
        if !is_now && !self.is_lost.load(Ordering::Relaxed) {
            return Ok(());
        }
        let device = self.info().name.clone();
        Err(match self.plan.kind {
            Kind::OutOfMemory => DeviceError::OutOfMemory { device, bytes: bytes as u64 },
            Kind::Timeout => DeviceError::Timeout { device, seconds: DEADLINE.as_secs() },
            Kind::Lost => DeviceError::Lost { device, what: "fault", error: "as planned".to_owned() },
        })
    }
}

impl Driver for Faulty {
    fn info(&self) -> &DeviceInfo {
        self.driver.info()
    }

    fn allocate(&self, bytes: usize) -> Result<Handle, DeviceError> {
        self.check(Operation::Allocate, bytes)?;
        self.driver.allocate(bytes)
    }

    fn free(&self, handle: Handle) {
        self.driver.free(handle);
    }

    fn write(&self, queue: Queue, to: Handle, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        if queue == Queue::Copies {
            self.is_counting.store(true, Ordering::Relaxed);
        }
        self.check(Operation::Write, bytes.len())?;
        self.driver.write(queue, to, at, bytes)
    }

    fn read(&self, from: Handle, at: usize, into: &mut [u8]) -> Result<(), DeviceError> {
        self.check(Operation::Read, into.len())?;
        self.driver.read(from, at, into)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        self.check(Operation::Launch, 0)?;
        self.driver.launch(launch)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Nothing, info};
    use super::*;

    fn driver(plan: &str) -> Faulty {
        Faulty::new(Arc::new(Nothing(info("none"))), Plan::parse(plan).expect("a plan"))
    }

    fn launch(driver: &dyn Driver) -> Result<(), DeviceError> {
        driver.launch(&Launch { kernel: "k", groups: [1, 1], lanes: 1, args: &[] })
    }

    #[test]
    fn a_lost_device_stays_lost() {
        for (plan, is_timeout) in [("launch:3:lost", false), ("launch:3:timeout", true)] {
            let driver = driver(plan);
            assert!(launch(&driver).is_ok() && launch(&driver).is_ok());
            assert!(driver.read(Handle(1), 0, &mut []).is_ok(), "not counted");
            for error in [launch(&driver), launch(&driver), driver.write(Queue::Compute, Handle(1), 0, &[])] {
                match error {
                    Err(DeviceError::Timeout { .. }) => assert!(is_timeout),
                    Err(DeviceError::Lost { .. }) => assert!(!is_timeout),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn what_was_done_before_there_were_weights_may_not_count() {
        let driver = driver("used:launch:2:lost");
        assert!((0..5).all(|_| launch(&driver).is_ok()));
        assert!(driver.write(Queue::Compute, Handle(1), 0, &[]).is_ok());
        assert!((0..5).all(|_| launch(&driver).is_ok()));
        assert!(driver.write(Queue::Copies, Handle(1), 0, &[]).is_ok());
        assert!(launch(&driver).is_ok() && launch(&driver).is_err());
    }

    #[test]
    fn memory_is_lacking_once() {
        let driver = driver("allocate:2:memory");
        assert!(driver.allocate(5).is_ok());
        assert!(matches!(driver.allocate(7), Err(DeviceError::OutOfMemory { bytes: 7, .. })));
        assert!(driver.allocate(7).is_ok());
    }

    #[test]
    fn plans_are_read_as_they_are_documented() {
        let plan = Plan { operation: Operation::Read, at: 12, kind: Kind::Timeout, once_used: false };
        assert_eq!(Plan::parse("read:12:timeout"), Some(plan));
        assert_eq!(Plan::parse("used:read:12:timeout"), Some(Plan { once_used: true, ..plan }));
        for wrong in [
            "",
            "read",
            "used:",
            "used:read",
            "read:0:lost",
            "read:x:lost",
            "read:1:gone",
            "look:1:lost",
            "read:1:lost:2",
        ] {
            assert_eq!(Plan::parse(wrong), None, "{wrong}");
        }
    }
}
