//! A model of which a part of the layers is loaded, one stage of several: what is wanted of its file, and where
//! it may be cut.

use std::ops::Range;

use super::ModelError;

/// Where in a pass what is loaded has its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Before the layers.
    Beginning,
    Layer(usize),
    /// Behind them.
    End,
}

impl Place {
    /// That of a tensor of this name, which is read at `now`.
    pub fn of_tensor(name: &str, now: Place) -> Place {
        block_of(name).map_or(now, Place::Layer)
    }
}

/// The block that a tensor is of, where its name says one.
pub(super) fn block_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// The layers that are wanted, of all.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    pub layers: Range<usize>,
    of: usize,
}

impl Cut {
    /// Before it is known how many there are.
    pub fn new(layers: Range<usize>) -> Cut {
        Cut { layers, of: usize::MAX }
    }

    /// That there are so many.
    ///
    /// # Errors
    /// Where none of them is wanted, or more.
    pub fn check(&mut self, of: usize) -> Result<(), ModelError> {
        self.of = of;
        let Range { start, end } = self.layers;
        match start < end && end <= of {
            true => Ok(()),
            false => Err(ModelError::NoSuchLayers { first: start, end, layers: of }),
        }
    }

    /// Whether what has this place is wanted.
    pub fn has(&self, place: Place) -> bool {
        match place {
            Place::Beginning => self.layers.start == 0,
            Place::Layer(il) => self.layers.contains(&il),
            Place::End => self.layers.end == self.of,
        }
    }
}

/// What a layer takes of an earlier one, which has to be in the same stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub from: usize,
    pub to: usize,
    pub what: &'static str,
}

/// Whether a model with these links can be cut there.
///
/// # Errors
/// What would be cut.
pub(super) fn check_links(
    links: &[Link],
    layers: &Range<usize>,
    architecture: &str,
) -> Result<(), ModelError> {
    let cut = |at: usize| links.iter().find(move |link| link.from < at && at <= link.to);
    match cut(layers.start).or(cut(layers.end)) {
        Some(&Link { from, to, what }) => {
            Err(ModelError::CannotCut { architecture: architecture.to_owned(), from, to, what })
        }
        None => Ok(()),
    }
}

/// The layers before which a model of so many can be cut.
pub(super) fn borders(links: &[Link], layers: usize) -> Vec<usize> {
    let whole = |at: &usize| !links.iter().any(|link| link.from < *at && *at <= link.to);
    (1..layers).filter(whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let mut cut = Cut::new(2..5);
        assert!(cut.check(5).is_ok());
        let has = |name: &str, now| cut.has(Place::of_tensor(name, now));
        assert!(!has("token_embd.weight", Place::Beginning) && has("output.weight", Place::End));
        assert!(has("table.weight", Place::Layer(2)) && !has("table.weight", Place::Layer(1)));
        // Its name says more than when it is read.
        assert!(has("blk.4.ffn_norm", Place::Beginning) && !has("blk.1.ffn_norm.weight", Place::End));
        for wrong in [0..0, 5..6, 3..6, usize::MAX..usize::MAX] {
            assert!(Cut::new(wrong).check(5).is_err());
        }
    }

    #[test]
    fn links_are_not_cut() {
        let links = [Link { from: 1, to: 3, what: "keys" }];
        assert_eq!(borders(&links, 6), [1, 4, 5]);
        for (layers, whole) in [(0..1, true), (0..2, false), (1..4, true), (2..6, false), (4..6, true)] {
            assert_eq!(check_links(&links, &layers, "a").is_ok(), whole, "{layers:?}");
        }
    }
}
