use tensorpress_prune::prune_group;
use tensorpress_tensor::grid::GridSpec;
use tensorpress_tensor::node::Masked;
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, Group, Method, Node, Result, Select, Target,
};

/// What a selector keeps, in its stored type.
#[derive(Debug, Clone, Copy)]
pub struct Kept<S>(pub S);

impl<S: Method> Method for Kept<S> {
    fn id(&self) -> &'static str {
        self.0.id()
    }

    fn needs(&self) -> Needs {
        self.0.needs()
    }
}

impl<S: Select> Compress for Kept<S> {
    type Node = Masked;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Masked>> {
        prune_group(&self.0, group)
    }
}

/// A support fixed first, then a method for what stays.
#[derive(Debug, Clone, Copy)]
pub struct Then<S, C> {
    select: S,
    method: C,
}

impl<S, C> Then<S, C> {
    pub(super) fn new(select: S, method: C) -> Self {
        Self { select, method }
    }
}

impl<S: Method, C: Method> Method for Then<S, C> {
    fn id(&self) -> &'static str {
        self.method.id()
    }

    fn needs(&self) -> Needs {
        self.select.needs().union(self.method.needs())
    }

    fn grid(&self) -> Option<GridSpec> {
        self.method.grid()
    }

    fn corrects_bias(&self) -> bool {
        self.method.corrects_bias()
    }
}

impl<S: Select, C: Compress> Compress for Then<S, C> {
    type Node = Box<dyn Node>;

    fn compress_group(&self, mut group: Group<'_>) -> Result<CompressedGroup> {
        // A sweep factors the Gram matrix in its own memory; the method after it may need one too.
        let both = self.select.needs().meets(&self.method.needs());
        let spare = both.then(|| group.calibration.clone());
        let selections = self.select.select_group(&mut group)?;
        let Group { targets, calibration, fold, seed, par } = group;
        let chosen = targets.iter().zip(&selections).map(|(target, selection)| Target {
            weight: selection.weight.as_ref().map_or(target.weight, |w| w.view()),
            mask: Some(&selection.mask),
            ..target.clone()
        });
        let group = Group {
            targets: chosen.collect(),
            calibration: spare.unwrap_or(calibration),
            fold,
            seed,
            par,
        };
        let CompressedGroup { layers, folded } = self.method.compress_group(group)?;
        let pairs = layers.into_iter().zip(selections).zip(&targets);
        let layers = pairs.map(|((layer, selection), target)| {
            let layer = layer.boxed();
            let node = Masked::new(selection.mask, layer.node).in_tensor(target.name)?;
            let layer = Compressed { node: node.boxed(), ..layer };
            let of_method = layer.fallback.clone();
            Ok(layer.with_fallback(selection.fallback).with_note(of_method))
        });
        Ok(CompressedGroup { layers: layers.collect::<Result<_>>()?, folded })
    }
}
