//! The binary: everything it does is in the library.

/// Deliveries are small pieces of memory that one thread takes and another gives back: the system's allocator spends more
/// time on its locks than on them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    use_small_pages();
    herald::cli::main()
}

/// The allocator asks for pages of 2 MiB where the system gives them. A connection that waits touches a tenth of its
/// buffers, and such a page makes all of what lies between them resident: beside 2 400 receivers that hang it was 240 MB
/// instead of 140. A delivery costs the same with and without them. It holds for child processes too; a Redis does the same
/// by itself.
fn use_small_pages() {
    // A kernel without such pages refuses, and has none to give.
    let _ = nix::sys::prctl::set_thp_disable(true);
}
