use tensorpress_tensor::node::KnownLevels;

/// The nearest level of numbers from -1 to 1; the lower one in the middle of two.
pub(super) struct Nearest {
    /// Codes by ascending level.
    codes: Vec<u8>,
    /// Middles of neighbours, in f32.
    middles: Vec<f32>,
    /// The official code looks its map of 256 levels up in a table of so many steps for a unit.
    steps: Option<f64>,
}

impl Nearest {
    pub(super) fn new(table: KnownLevels) -> Self {
        let levels = table.levels();
        let level = |code: u8| levels[usize::from(code)];
        let mut codes: Vec<u8> = (0..=u8::MAX).take(levels.len()).collect();
        codes.sort_by(|a, b| level(*a).total_cmp(&level(*b)));
        let middles = codes.windows(2).map(|two| (level(two[0]) + level(two[1])) * 0.5).collect();
        let steps = (table == KnownLevels::Dynamic8).then_some(32767.5);
        Self { codes, middles, steps }
    }

    pub(super) fn code(&self, mut value: f32) -> u8 {
        if let Some(steps) = self.steps {
            let step = ((f64::from(value) + 1.0) * steps).round_ties_even();
            value = (step / steps - 1.0) as f32;
        }
        self.codes[self.middles.partition_point(|middle| *middle < value)]
    }
}
