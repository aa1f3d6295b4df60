use tensorpress_tensor::rate::RateCurve;
use tensorpress_tensor::stage::{Inside, Row, WeightPart, WeightRole};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DynCompress, Error, Group, Method, Node,
    Recode, Result,
};

/// A method whose integers are entropy-coded.
#[derive(Debug, Clone, Copy)]
pub struct Coded<M, C> {
    method: M,
    coder: C,
}

impl<M, C> Coded<M, C> {
    pub(super) fn new(method: M, coder: C) -> Self {
        Self { method, coder }
    }
}

pub(super) fn stage() -> Row<WeightPart> {
    let name = "coded";
    let about = "entropy-codes the integers without loss; matrices are decoded tile by tile, or once for generation";
    let build = move |(), coder| {
        let Some(WeightPart::Recode(coder)) = coder else {
            return Err(Error::invalid(format!("{name}: needs an entropy coder inside")));
        };
        Ok(WeightPart::After(Box::new(move |method: Box<dyn DynCompress>| {
            let coded: Box<dyn DynCompress> = Box::new(Coded::new(method, coder));
            Ok(coded)
        })))
    };
    Row::new(name, WeightRole::Coding, about, || (), build)
        .with_inside(Inside::One(vec![WeightRole::Coder]))
}

impl<M: Method, C: Recode> Method for Coded<M, C> {
    fn id(&self) -> &'static str {
        self.method.id()
    }

    fn needs(&self) -> Needs {
        self.method.needs()
    }

    fn around(&self) -> Option<&dyn Method> {
        Some(&self.method)
    }
}

impl<M: Compress, C: Recode> Compress for Coded<M, C> {
    type Node = Box<dyn Node>;

    fn rates(&self, group: Group<'_>) -> Result<Vec<RateCurve>> {
        self.method.rates(group)
    }

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        let names: Vec<&str> = group.targets.iter().map(|target| target.name).collect();
        let CompressedGroup { layers, folded } = self.method.compress_group(group)?;
        let code = |(layer, name): (Compressed<M::Node>, &str)| {
            let layer = layer.boxed();
            Ok(Compressed { node: self.coder.recode(layer.node).in_tensor(name)?, ..layer })
        };
        let layers = layers.into_iter().zip(names).map(code).collect::<Result<_>>()?;
        Ok(CompressedGroup { layers, folded })
    }
}
