use tensorpress_entropy::{TileCoder, coded};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, Group, Method, Node, Result,
};

/// A method whose integers are entropy-coded.
#[derive(Debug, Clone, Copy)]
pub struct Coded<M> {
    method: M,
    coder: TileCoder,
}

impl<M> Coded<M> {
    pub(super) fn new(method: M, coder: TileCoder) -> Self {
        Self { method, coder }
    }
}

impl<M: Method> Method for Coded<M> {
    fn id(&self) -> &'static str {
        self.method.id()
    }

    fn needs(&self) -> Needs {
        self.method.needs()
    }
}

impl<M: Compress> Compress for Coded<M> {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        let names: Vec<&str> = group.targets.iter().map(|target| target.name).collect();
        let CompressedGroup { layers, folded } = self.method.compress_group(group)?;
        let code = |(layer, name): (Compressed<M::Node>, &str)| {
            let layer = layer.boxed();
            Ok(Compressed { node: coded(layer.node, self.coder).in_tensor(name)?, ..layer })
        };
        let layers = layers.into_iter().zip(names).map(code).collect::<Result<_>>()?;
        Ok(CompressedGroup { layers, folded })
    }
}
