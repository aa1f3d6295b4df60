//! ggml's own product on the CPU, out of a folder of its shared libraries that `TENSORPRESS_GGML` names.

use std::ffi::{c_int, c_void};
use std::path::Path;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tensorpress_tensor::kernels::{BlockRows, BlockType};

type Tensor = *mut c_void;

#[repr(C)]
struct InitParams {
    memory: usize,
    buffer: *mut c_void,
    no_alloc: bool,
}

/// Its first two fields, and room for those that versions add.
#[repr(C)]
struct Plan {
    work_size: usize,
    work_data: *mut u8,
    rest: [u64; 14],
}

/// What is called of the libraries, which stay open as long as the process.
#[derive(Clone, Copy)]
pub struct Ggml {
    init: unsafe extern "C" fn(InitParams) -> *mut c_void,
    new_tensor: unsafe extern "C" fn(*mut c_void, c_int, i64, i64) -> Tensor,
    data: unsafe extern "C" fn(Tensor) -> *mut c_void,
    mul_mat: unsafe extern "C" fn(*mut c_void, Tensor, Tensor) -> Tensor,
    new_graph: unsafe extern "C" fn(*mut c_void) -> *mut c_void,
    expand: unsafe extern "C" fn(*mut c_void, Tensor),
    plan: unsafe extern "C" fn(*mut c_void, c_int, *mut c_void) -> Plan,
    compute: unsafe extern "C" fn(*mut c_void, *mut Plan) -> c_int,
}

impl Ggml {
    /// The libraries, if the environment names them.
    ///
    /// # Panics
    /// If they are not there, or lack a function.
    pub fn find() -> Option<Self> {
        let folder = std::env::var("TENSORPRESS_GGML").ok()?;
        // SAFETY: the libraries do nothing but initialise themselves, and stay open as long as the process; the types of
        // their functions are those that ggml.h and ggml-cpu.h declare.
        unsafe {
            let [base, cpu] = ["libggml-base.so", "libggml-cpu.so"].map(|name| {
                let path = Path::new(&folder).join(name);
                let open = Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL);
                &*Box::leak(Box::new(open.unwrap_or_else(|e| panic!("{}: {e}", path.display()))))
            });
            Some(Self {
                init: function(base, "ggml_init"),
                new_tensor: function(base, "ggml_new_tensor_2d"),
                data: function(base, "ggml_get_data"),
                mul_mat: function(base, "ggml_mul_mat"),
                new_graph: function(base, "ggml_new_graph"),
                expand: function(base, "ggml_build_forward_expand"),
                plan: function(cpu, "ggml_graph_plan"),
                compute: function(cpu, "ggml_graph_compute"),
            })
        }
    }

    /// A product on one thread, and where its outputs lie; `None` for types without a number here.
    pub fn product<'a>(self, w: &BlockRows<'a>, x: &[f32]) -> Option<(Product, Vec<f32>)> {
        let number = match w.kind {
            BlockType::Q4_0 => 2,
            BlockType::Q4_1 => 3,
            BlockType::Q5_0 => 6,
            BlockType::Q5_1 => 7,
            BlockType::Q8_0 => 8,
            BlockType::Q2_K => 10,
            BlockType::Q3_K => 11,
            BlockType::Q4_K => 12,
            BlockType::Q5_K => 13,
            BlockType::Q6_K => 14,
            BlockType::IQ4_NL => 20,
            BlockType::IQ4_XS => 23,
            BlockType::MXFP4 => 39,
            _ => return None,
        };
        let (rows, cols, tokens) = (w.rows, w.cols, x.len() / w.cols);
        let memory = w.bytes.len() + 4 * x.len() + 4 * rows * tokens + (16 << 20);
        // SAFETY: the context has room for the tensors and the graph, which are as large as what is copied; it is never
        // given back, so that everything in it lives as long as the process.
        unsafe {
            let context =
                (self.init)(InitParams { memory, buffer: std::ptr::null_mut(), no_alloc: false });
            let matrix = (self.new_tensor)(context, number, cols as i64, rows as i64);
            std::ptr::copy_nonoverlapping(
                w.bytes.as_ptr(),
                (self.data)(matrix).cast(),
                w.bytes.len(),
            );
            let inputs = (self.new_tensor)(context, 0, cols as i64, tokens as i64);
            std::ptr::copy_nonoverlapping(x.as_ptr(), (self.data)(inputs).cast(), x.len());
            let outputs = (self.mul_mat)(context, matrix, inputs);
            let graph = (self.new_graph)(context);
            (self.expand)(graph, outputs);
            let mut plan = (self.plan)(graph, 1, std::ptr::null_mut());
            let mut work = vec![0u8; plan.work_size.max(1)];
            plan.work_data = work.as_mut_ptr();
            let mut product = Product { ggml: self, graph, plan, _work: work };
            product.run();
            let made = std::slice::from_raw_parts((self.data)(outputs).cast(), rows * tokens);
            Some((product, made.to_vec()))
        }
    }
}

/// A product that is ready to be computed again.
pub struct Product {
    ggml: Ggml,
    graph: *mut c_void,
    plan: Plan,
    _work: Vec<u8>,
}

impl Product {
    /// Computes it.
    pub fn run(&mut self) {
        // SAFETY: the graph and what it reads live as long as the process, the work buffer as long as this.
        let status = unsafe { (self.ggml.compute)(self.graph, &raw mut self.plan) };
        assert_eq!(status, 0, "ggml_graph_compute");
    }
}

/// A function of a library.
///
/// # Safety
/// It is of type `F`.
unsafe fn function<F: Copy>(library: &'static Library, name: &str) -> F {
    // SAFETY: as the caller promises.
    *unsafe { library.get::<F>(name.as_bytes()) }.unwrap_or_else(|e| panic!("{name}: {e}"))
}
