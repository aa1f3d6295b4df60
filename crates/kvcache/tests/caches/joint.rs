//! Pages over layers, by a form made here: each page holds the first layer, and what the others differ from it.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array3, ArrayViewMut2, Axis};
use serde_json::{Value, json};
use tensorpress_kvcache::{
    Caches, JointForm, JointPage, KvRegistry, KvShape, Paging, Role, Rope,
    store::{bytes_part, read_bytes},
};
use tensorpress_tensor::node::PartSource;
use tensorpress_tensor::{Checkpoint, ErrorKind, PartKind, PartSink, Result, Storage, ndarray};

use super::{DIM, KV_HEADS, far, feed, file, shape};

#[derive(Debug)]
struct Deltas {
    group: usize,
    plain: bool,
}

/// `[member][role]`
#[derive(Debug, Clone)]
struct Page {
    states: Vec<[Array3<f32>; 2]>,
}

fn stack(member: &Page) -> Vec<u8> {
    let all = member.states.iter().flatten().flatten();
    all.flat_map(|v| v.to_le_bytes()).collect()
}

impl JointPage for Page {
    fn tokens(&self) -> usize {
        self.states[0][0].dim().0
    }

    fn decode(&self, member: usize, role: Role, head: usize, mut out: ArrayViewMut2<'_, f32>) {
        let role = usize::from(role == Role::Values);
        let of = |member: usize| self.states[member][role].index_axis(Axis(1), head);
        out.assign(&of(0));
        if member > 0 {
            out += &of(member);
        }
    }

    fn bytes(&self) -> u64 {
        stack(self).len() as u64
    }

    fn describe(&self) -> Value {
        json!({ "tokens": self.tokens() })
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        bytes_part(sink, prefix, "states", PartKind::Values, &stack(self))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl JointForm for Deltas {
    fn id(&self) -> &'static str {
        "deltas"
    }

    fn describe(&self) -> Value {
        json!({ "id": self.id(), "group": self.group, "plain": self.plain })
    }

    fn check(&self, _: KvShape, _: usize) -> Result<()> {
        Ok(())
    }

    fn plain_keys(&self) -> bool {
        self.plain
    }

    /// The first layer is alone.
    fn groups(&self, layers: usize) -> Vec<Range<usize>> {
        let ends = (1..layers).step_by(self.group);
        ends.map(|start| start..(start + self.group).min(layers)).collect()
    }

    fn paging(&self) -> Paging {
        Paging::new(24).with_window(10).with_margin(8)
    }

    fn pack(
        &self,
        group: Range<usize>,
        first: Option<&dyn JointPage>,
        keys: &[Array3<f32>],
        values: &[Array3<f32>],
    ) -> Result<Arc<dyn JointPage>> {
        assert_eq!((group.len(), group.len()), (keys.len(), values.len()));
        assert!(first.is_none_or(|first| first.as_any().is::<Page>()));
        let of = |(member, (k, v)): (usize, (&Array3<f32>, &Array3<f32>))| match member {
            0 => [k.clone(), v.clone()],
            _ => [k - &keys[0], v - &values[0]],
        };
        Ok(Arc::new(Page { states: keys.iter().zip(values).enumerate().map(of).collect() }))
    }

    fn read_page(
        &self,
        group: Range<usize>,
        _: Option<&dyn JointPage>,
        json: &Value,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Arc<dyn JointPage>> {
        let tokens = tensorpress_kvcache::store::count(json, "tokens")?;
        let one = tensorpress_kvcache::store::product(&[tokens, KV_HEADS, DIM])?;
        let bytes = read_bytes(source, prefix, "states", one * 8 * group.len())?;
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let of = |part: &[f32]| {
            Array3::from_shape_vec((tokens, KV_HEADS, DIM), part.to_vec()).expect("whole")
        };
        let states = values.chunks_exact(2 * one.max(1));
        let states = states.map(|both| [of(&both[..one]), of(&both[one..])]).collect();
        Ok(Arc::new(Page { states }))
    }
}

fn together(group: usize, plain: bool) -> Caches {
    let rope = Rope::new(DIM, 10_000.0);
    let rope = plain.then(|| rope.expect("a rotary embedding"));
    Caches::joint(Arc::new(Deltas { group, plain }), &[shape(); 6], rope.as_ref()).expect("caches")
}

fn floats() -> Caches {
    "f32"
        .parse::<tensorpress_kvcache::KvRecipe>()
        .expect("a recipe")
        .together(&[shape(); 6])
        .expect("caches")
}

#[test]
fn pages_over_layers_give_what_floats_give() {
    for (group, plain) in [(2, false), (3, false), (5, true), (1, false)] {
        let (mut caches, mut exact) = (together(group, plain), floats());
        for step in [0..100, 100..101, 101..140, 140..300] {
            let (a, b) = (feed(&mut caches, step.clone()), feed(&mut exact, step.clone()));
            let most = if plain { 2e-4 } else { 2e-6 };
            assert!(far(&a, &b) < most, "group {group}: {}", far(&a, &b));
        }
        // As many bytes: a page holds f32 here; what can be taken back is held twice.
        let twice = 6 * 2 * KV_HEADS * DIM * 4 * (24 + 10 + 8);
        assert!((exact.bytes()..=exact.bytes() + twice as u64).contains(&caches.bytes()));
    }
}

#[test]
fn streaming_equals_batch_and_forks_are_apart() {
    let (mut batch, mut stream) = (together(2, false), together(2, false));
    feed(&mut batch, 0..150);
    (0..150).for_each(|t| drop(feed(&mut stream, t..t + 1)));
    let mut fork = stream.fork();
    feed(&mut fork, 300..350);
    let (a, b) = (feed(&mut batch, 150..190), feed(&mut stream, 150..190));
    assert!(far(&a, &b) < 2e-6);
    assert_eq!(batch.describe(), stream.describe());
    assert_eq!(batch.bytes(), stream.bytes());
}

#[test]
fn what_was_taken_back_has_never_been() {
    let mut caches = together(3, false);
    feed(&mut caches, 0..110);
    let (earliest, full) = (caches.earliest(), caches.len());
    assert!(earliest < full && earliest >= full - 8 - 24, "{earliest}");
    for len in [full - 1, full - 4, earliest] {
        let mut back = caches.fork();
        feed(&mut back, 300..306);
        if back.earliest() > len {
            continue;
        }
        back.truncate(len).expect("truncates");
        let mut again = together(3, false);
        feed(&mut again, 0..len);
        let (a, b) = (feed(&mut back, 200..240), feed(&mut again, 200..240));
        assert!(far(&a, &b) < 2e-6, "{len}");
        assert_eq!(back.bytes(), again.bytes());
    }
    let error = caches.truncate(earliest - 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    caches.truncate(0).expect("all of it");
    assert_eq!((caches.bytes(), caches.is_empty()), (0, true));
    feed(&mut caches, 0..60);
}

fn written(caches: &Caches) -> (Vec<u8>, String) {
    let mut parts = Storage::default();
    caches.parts("kv", &mut parts).expect("counts");
    assert_eq!(parts.bytes(), caches.bytes(), "bytes written = bytes claimed");
    (file(&|sink| caches.parts("kv", sink)), caches.describe().to_string())
}

#[test]
fn caches_come_back_from_a_file() {
    let reads = |json: &Value| -> Result<Arc<dyn JointForm>> {
        let group = json["group"].as_u64().expect("a number") as usize;
        Ok(Arc::new(Deltas { group, plain: json["plain"] == true }))
    };
    let registry = KvRegistry::default().with_joint("deltas", reads);
    let owned = || floats().with_owners(&[0, 1, 1, 0, 4, 4]).expect("owners");
    for mut caches in [together(2, false), together(5, true), floats(), owned()] {
        feed(&mut caches, 0..120);
        let (bytes, text) = written(&caches);
        let read = |bytes: Vec<u8>, text: &str, registry: &KvRegistry| {
            let file = Checkpoint::from_bytes("kv", bytes)?;
            Caches::read(&serde_json::from_str(text).expect("JSON"), "kv", &file, registry)
        };
        let mut back = read(bytes.clone(), &text, &registry).expect("reads");
        assert_eq!(back.describe(), caches.describe());
        assert_eq!(back.bytes(), caches.bytes());
        let (a, b) = (feed(&mut back, 120..170), feed(&mut caches, 120..170));
        assert!(far(&a, &b) == 0.0);
        // Descriptions that contradict the parts, and each other.
        for (from, to) in [
            ("\"first\":96", "\"first\":97"),
            ("\"pages\":4,", "\"pages\":3,"),
            ("\"pages\":4}", "\"pages\":3}"),
            ("\"tokens\":24", "\"tokens\":25"),
            ("\"seen\":[120", "\"seen\":[121"),
            ("kv.caches.v1", "kv.caches.v9"),
        ] {
            let damaged = text.replacen(from, to, 1);
            if damaged != text {
                read(bytes.clone(), &damaged, &registry).expect_err(to);
            }
        }
        if text.contains("deltas") {
            let error = read(bytes, &text, &KvRegistry::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.message().contains("`deltas`"), "{error}");
        }
    }
}

#[test]
fn readers_see_what_their_owners_hold() {
    let owners = [0, 1, 1, 3, 3, 3];
    let mut caches = floats().with_owners(&owners).expect("owners");
    let mut exact = floats();
    for step in [0..30, 30..31, 31..64] {
        let now = feed(&mut caches, step.clone());
        let own = feed(&mut exact, step);
        for (layer, owner) in owners.iter().enumerate() {
            let same = far(&now[layer..=layer], &own[layer..=layer]) == 0.0;
            assert_eq!(same, layer == *owner, "layer {layer}");
        }
    }
    assert_eq!(caches.bytes() * 2, exact.bytes());
    caches.truncate(20).expect("truncates");
    assert_eq!((caches.len(), caches.seen(5)), (20, 20));
    for (owners, why) in [
        (&[0, 2, 2, 3, 4, 5][..], "earlier"),
        (&[0, 0, 1, 3, 4, 5], "hold their own"),
        (&[0, 1], "6 expected"),
    ] {
        let error = floats().with_owners(owners).unwrap_err();
        assert!(error.message().contains(why), "{error}");
    }
    let error = together(2, false).with_owners(&[0, 1, 2, 3, 4, 5]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let mut early = floats().with_owners(&[0, 0, 2, 3, 4, 5]).expect("owners");
    let [k, v, _] = super::states(0, 3);
    let error = early.append(1, k.view(), v.view()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(early.append(9, k.view(), v.view()).unwrap_err().kind(), ErrorKind::InvalidArgument);
}
