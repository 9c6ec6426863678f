//! Amounts of memory and CPU time in the notations of the kernel, CRI and Kubernetes.

mod bytes;
mod cpu;
mod knob;
mod limit;
mod page_size;
mod quantity;
mod text;

pub use self::bytes::{Bytes, BytesError};
pub use self::cpu::{CpuMax, CpuMaxError, CpuShares, MilliCpu};
pub use self::knob::{CPU_MAX, Knob};
pub use self::limit::{Limit, LimitError, NegativeLimit};
pub use self::page_size::PageSize;
pub use self::quantity::QuantityError;
pub use self::text::{excerpt, harmless, printable};
