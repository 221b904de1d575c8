//! The binary: everything it does is in the library.

/// Deliveries are small pieces of memory that one thread takes and another gives back: the system's allocator spends more
/// time on its locks than on them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    herald::cli::main()
}
