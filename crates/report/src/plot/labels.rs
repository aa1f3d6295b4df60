//! Where labels of points go, so that none lies on another, on a marker or on a line.

/// A rectangle: left, top, right, bottom.
#[derive(Debug, Clone, Copy)]
pub struct Area(pub i32, pub i32, pub i32, pub i32);

impl Area {
    /// Around a point.
    pub fn around((x, y): (i32, i32), reach: i32) -> Self {
        Self(x - reach, y - reach, x + reach, y + reach)
    }

    fn meets(&self, other: &Area) -> bool {
        self.0 < other.2 && other.0 < self.2 && self.1 < other.3 && other.1 < self.3
    }

    fn within(&self, outer: &Area) -> bool {
        self.0 >= outer.0 && self.1 >= outer.1 && self.2 <= outer.2 && self.3 <= outer.3
    }

    /// Whether a stretch of a line runs through it: it is halved until that is plain.
    fn crossed(&self, from: (i32, i32), to: (i32, i32)) -> bool {
        let stretch =
            Area(from.0.min(to.0), from.1.min(to.1), from.0.max(to.0) + 1, from.1.max(to.1) + 1);
        if !self.meets(&stretch) {
            return false;
        }
        if stretch.2 - stretch.0 < 4 && stretch.3 - stretch.1 < 4 {
            return true;
        }
        let middle = ((from.0 + to.0) / 2, (from.1 + to.1) / 2);
        self.crossed(from, middle) || self.crossed(middle, to)
    }
}

/// What is taken already.
pub struct Taken {
    plot: Area,
    areas: Vec<Area>,
    stretches: Vec<((i32, i32), (i32, i32))>,
}

impl Taken {
    /// Nothing yet, of this plot.
    pub fn new(plot: Area) -> Self {
        Self { plot, areas: Vec::new(), stretches: Vec::new() }
    }

    /// A marker.
    pub fn mark(&mut self, area: Area) {
        self.areas.push(area);
    }

    /// A line.
    pub fn line(&mut self, points: &[(i32, i32)]) {
        self.stretches.extend(points.windows(2).map(|pair| (pair[0], pair[1])));
    }

    /// The left and the middle of a label of this size beside a point, if there is room anywhere.
    pub fn place(&mut self, (x, y): (i32, i32), size: (i32, i32), gap: i32) -> Option<(i32, i32)> {
        let (width, height) = size;
        let (half, up) = (width / 2, height / 2 + gap);
        let beside = [
            (x + gap, y),
            (x - gap - width, y),
            (x - half, y - up),
            (x - half, y + up),
            (x + gap, y - up),
            (x + gap, y + up),
            (x - gap - width, y - up),
            (x - gap - width, y + up),
        ];
        let area = |(left, y): (i32, i32)| Area(left, y - height / 2, left + width, y + height / 2);
        let free = |area: &Area| {
            area.within(&self.plot)
                && !self.areas.iter().any(|other| area.meets(other))
                && !self.stretches.iter().any(|(from, to)| area.crossed(*from, *to))
        };
        let found = beside.into_iter().find(|at| free(&area(*at)))?;
        self.areas.push(area(found));
        Some(found)
    }
}
