//! What a sequence remembers, in parts that can be written to files and read back, page by page.
//!
//! Of a page of 128 positions, each part holds what these positions have made: rows of keys and values, of
//! slots that keep all of them and of each width of window apart; states of recurrences at the page's end. A
//! sequence goes on from the end of a page with the pages of each part that [`KeptNeeds`] names.

use std::io::{self, Read, Write};
use std::ops::Range;

use super::super::super::{MemorySpec, ModelSpec};
use super::super::numbers::{read_numbers, write_numbers};
use super::{SequenceState, Slot};
use crate::kernels::ops::{PAGE, Window};
use crate::store::zeroed;

/// Which pages of a part a sequence needs to go on behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptNeeds {
    /// All from the first on.
    All,
    /// Those that a window sees.
    Window(Window),
    /// The last one alone: a state of a recurrence.
    Last,
}

impl KeptNeeds {
    /// The pages of a sequence that goes on at the end of `end` pages.
    pub fn pages(self, end: usize) -> Range<usize> {
        match self {
            KeptNeeds::All => 0..end,
            KeptNeeds::Window(window) => (window.start(end * PAGE) / PAGE).min(end)..end,
            KeptNeeds::Last => end.saturating_sub(1)..end,
        }
    }
}

/// Slots of which pages are kept together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPart {
    slots: Vec<usize>,
    /// What a sequence needs of it to go on.
    pub needs: KeptNeeds,
    /// Whether it is the block's of multi-token prediction, without which a sequence goes on as well.
    pub drafts: bool,
}

fn needs(memory: &MemorySpec) -> KeptNeeds {
    match *memory {
        MemorySpec::Pages { window: Some(window), .. } | MemorySpec::Compressing { window, .. } => {
            KeptNeeds::Window(window)
        }
        MemorySpec::Pages { .. }
        | MemorySpec::Latents { .. }
        | MemorySpec::Rows { .. }
        | MemorySpec::Compressed { .. } => KeptNeeds::All,
        MemorySpec::Recurrent { .. } => KeptNeeds::Last,
    }
}

/// Rows that the positions of a page have made, of which `ratio` positions make one.
fn rows(page: usize, ratio: usize) -> Range<usize> {
    page * PAGE / ratio..(page + 1) * PAGE / ratio
}

impl SequenceState {
    /// The parts of a model's state; the trunk's first. The first is of all pages, if it holds nothing: it
    /// tells which pages of a text have been seen.
    pub fn kept_parts(spec: &ModelSpec) -> Vec<KeptPart> {
        let mut parts = vec![KeptPart { slots: Vec::new(), needs: KeptNeeds::All, drafts: false }];
        for (slot, memory) in spec.memories.iter().enumerate() {
            let (needs, drafts) = (needs(memory), slot >= spec.trunk_memories);
            match parts.iter_mut().find(|part| part.needs == needs && part.drafts == drafts) {
                Some(part) => part.slots.push(slot),
                None => parts.push(KeptPart { slots: vec![slot], needs, drafts }),
            }
        }
        parts
    }

    /// Bytes of a page of a part.
    pub fn kept_bytes(&self, part: &KeptPart, page: usize) -> u64 {
        let bytes = |&slot: &usize| match &self.slots[slot] {
            Slot::Pages(pages) => pages.rows_bytes(PAGE),
            Slot::Compressed(pages, ratio) => pages.rows_bytes(rows(page, *ratio).len()),
            Slot::Recurrent(state) => (state.floats() * size_of::<f32>()) as u64,
        };
        part.slots.iter().map(bytes).sum()
    }

    /// Whether a page of a part is still there, of those that are full.
    pub fn has_kept(&self, part: &KeptPart, page: usize) -> bool {
        part.slots.iter().all(|&slot| match &self.slots[slot] {
            Slot::Pages(pages) => pages.has(&rows(page, 1)),
            Slot::Compressed(pages, ratio) => pages.has(&rows(page, *ratio)),
            Slot::Recurrent(state) => state.state_at((page + 1) * PAGE).is_some(),
        })
    }

    /// Writes a page of a part that is still there: [`SequenceState::kept_bytes`].
    ///
    /// # Errors
    /// What writing says.
    pub fn write_kept(&self, part: &KeptPart, page: usize, out: &mut impl Write) -> io::Result<()> {
        for &slot in &part.slots {
            match &self.slots[slot] {
                Slot::Pages(pages) => pages.write_rows(rows(page, 1), out)?,
                Slot::Compressed(pages, ratio) => pages.write_rows(rows(page, *ratio), out)?,
                Slot::Recurrent(state) => {
                    let state = state.state_at((page + 1) * PAGE).ok_or(io::ErrorKind::NotFound)?;
                    write_numbers(&state.values, f32::to_le_bytes, out)?;
                }
            }
        }
        Ok(())
    }

    /// Prepares an empty state for the pages of a part that [`KeptNeeds`] names, of which there may be none.
    pub fn begin_kept(&mut self, part: &KeptPart, end: usize) {
        let KeptNeeds::Window(_) = part.needs else { return };
        for &slot in &part.slots {
            if let Slot::Pages(pages) = &mut self.slots[slot] {
                pages.begin_at(part.needs.pages(end).start);
            }
        }
    }

    /// Reads a page of a part behind the one before it.
    ///
    /// # Errors
    /// What reading says, or no memory.
    pub fn read_kept(&mut self, part: &KeptPart, page: usize, from: &mut impl Read) -> io::Result<()> {
        for &slot in &part.slots {
            match &mut self.slots[slot] {
                Slot::Pages(pages) => pages.read_rows(rows(page, 1), from)?,
                Slot::Compressed(pages, ratio) => pages.read_rows(rows(page, *ratio), from)?,
                Slot::Recurrent(state) => {
                    let floats = zeroed::<f32>(&[state.floats()], "the state of a recurrence");
                    let mut floats = floats.map_err(|_| io::ErrorKind::OutOfMemory)?;
                    read_numbers(&mut floats, f32::from_le_bytes, from)?;
                    state.resume((page + 1) * PAGE, floats);
                }
            }
        }
        Ok(())
    }

    /// Forgets what was read of a part.
    pub fn forget_kept(&mut self, part: &KeptPart) {
        part.slots.iter().for_each(|&slot| self.slots[slot].rewind(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_needs_what_the_next_token_sees() {
        let sliding = |window| KeptNeeds::Window(Window::Sliding(window));
        assert_eq!(KeptNeeds::All.pages(3), 0..3);
        assert_eq!(KeptNeeds::Last.pages(3), 2..3);
        assert_eq!(sliding(1000).pages(3), 0..3);
        // The token at 384 sees 384 alone, then 383 as well, then back to 256 and to 255.
        for (window, first) in [(1, 3), (2, 2), (129, 2), (130, 1)] {
            assert_eq!(sliding(window).pages(3), first..3, "{window}");
        }
        let chunked = |window| KeptNeeds::Window(Window::Chunked(window));
        assert_eq!((chunked(384).pages(3), chunked(256).pages(3)), (3..3, 2..3));
        assert_eq!(chunked(100).pages(3), 2..3, "300 lies in the third page");
    }
}
