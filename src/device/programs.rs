//! Compiled programs on disk.

use super::DeviceInfo;

#[derive(Debug, Default)]
pub struct Programs;

pub(super) struct ProgramKey;

impl ProgramKey {
    pub(super) fn new(_: &DeviceInfo, _: &str, _: &str) -> ProgramKey {
        ProgramKey
    }
}

impl Programs {
    pub(super) fn get(&self, _: &ProgramKey) -> Option<Vec<u8>> {
        None
    }

    pub(super) fn put(&self, _: &ProgramKey, _: &[u8]) {}
}
