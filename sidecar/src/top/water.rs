//! What a container's memory is at one moment. Pure.

/// Memory of one container at one moment, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Water {
    /// `None`: there is none.
    pub limit: Option<u64>,
    /// What usage is to stay under.
    pub target: Option<u64>,
    /// All that is charged.
    pub usage: u64,
    /// What is no page cache: anonymous memory, and the kernel's own.
    pub anonymous: u64,
    /// Page cache to be written.
    pub dirty: u64,
    /// Page cache that is being written.
    pub writeback: u64,
}

/// What a part of usage is, from the bottom of the picture to its top.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Layer {
    Anonymous,
    Dirty,
    Writeback,
    Clean,
}

impl Layer {
    /// From the bottom.
    pub const ALL: [Layer; 4] = [Layer::Anonymous, Layer::Dirty, Layer::Writeback, Layer::Clean];
}

impl Water {
    /// How much of usage is of a layer. The layers fill usage up to its top and no more, though the kernel counts each
    /// at another moment.
    pub fn of(&self, layer: Layer) -> u64 {
        let anonymous = self.anonymous.min(self.usage);
        let dirty = self.dirty.min(self.usage - anonymous);
        let writeback = self.writeback.min(self.usage - anonymous - dirty);
        match layer {
            Layer::Anonymous => anonymous,
            Layer::Dirty => dirty,
            Layer::Writeback => writeback,
            Layer::Clean => self.usage - anonymous - dirty - writeback,
        }
    }

    /// The layer at a height; `None`: above the waterline.
    pub fn at(&self, height: u64) -> Option<Layer> {
        let mut top = 0;
        Layer::ALL.into_iter().find(|&layer| {
            top += self.of(layer);
            height < top
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(usage: u64, anonymous: u64, dirty: u64, writeback: u64) -> Water {
        Water { limit: None, target: None, usage, anonymous, dirty, writeback }
    }

    #[test]
    fn layers_add_up_to_usage() {
        let cases = [
            (of(100, 10, 20, 30), [10, 20, 30, 40]),
            (of(100, 10, 0, 0), [10, 0, 0, 90]),
            // counted at different moments
            (of(50, 40, 20, 30), [40, 10, 0, 0]),
            (of(0, 1, 1, 1), [0; 4]),
            (of(u64::MAX, u64::MAX, u64::MAX, 1), [u64::MAX, 0, 0, 0]),
        ];
        for (water, want) in cases {
            assert_eq!(Layer::ALL.map(|layer| water.of(layer)), want, "{water:?}");
        }
        let heights =
            [(9, Layer::Anonymous), (10, Layer::Dirty), (29, Layer::Dirty), (30, Layer::Writeback), (99, Layer::Clean)];
        for (height, layer) in heights {
            assert_eq!(of(100, 10, 20, 30).at(height), Some(layer), "{height}");
        }
        assert_eq!(of(100, 10, 20, 30).at(100), None);
    }
}
