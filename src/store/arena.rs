//! Memory of our own for weights: reserved once, filled by reads, never given back.

use memmap2::{MmapMut, MmapOptions};

use super::OutOfMemory;
use super::os::{Os, System};

/// A range of an [`Arena`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub start: usize,
    pub len: usize,
}

/// Anonymous memory, aligned to pages. The system gives its pages as they are first written.
#[derive(Debug)]
pub struct Arena {
    map: MmapMut,
    start: *mut u8,
}

// SAFETY: the memory belongs to the arena alone; who may touch which part of it and when is in the
// contracts of `bytes` and `bytes_mut`.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// An arena of `len` bytes.
    ///
    /// # Errors
    /// Where the system refuses them.
    pub fn new(len: usize) -> Result<Arena, OutOfMemory> {
        let out_of_memory = |_| OutOfMemory { bytes: len as u128, what: "the weights" };
        let mut map = MmapOptions::new().len(len.max(1)).map_anon().map_err(out_of_memory)?;
        Os::prefer_large_pages(&map);
        let start = map.as_mut_ptr();
        Ok(Arena { map, start })
    }

    fn at(&self, slot: Slot) -> *mut u8 {
        let end = slot.start.checked_add(slot.len);
        assert!(end.is_some_and(|end| end <= self.map.len()), "a slot outside of the arena");
        // SAFETY: inside of the mapping, as was just checked.
        unsafe { self.start.add(slot.start) }
    }

    /// The bytes of a slot.
    ///
    /// # Safety
    /// While they are borrowed, nobody may have the same bytes from [`Arena::bytes_mut`].
    pub unsafe fn bytes(&self, slot: Slot) -> &[u8] {
        // SAFETY: inside of the mapping (`at`), initialised (anonymous memory is zeros), and not written to
        // meanwhile, as the caller promises.
        unsafe { std::slice::from_raw_parts(self.at(slot), slot.len) }
    }

    /// The bytes of a slot, to write to.
    ///
    /// # Safety
    /// While they are borrowed, nobody else may have any of them.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn bytes_mut(&self, slot: Slot) -> &mut [u8] {
        // SAFETY: inside of the mapping (`at`), initialised, and exclusively the caller's, as it promises.
        unsafe { std::slice::from_raw_parts_mut(self.at(slot), slot.len) }
    }
}
