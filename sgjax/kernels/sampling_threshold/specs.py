"""Cases of `sampling_threshold`."""

from sgjax.kernels.cases import FilterCase

PARITY = (
    FilterCase(num_rows=6, vocab_size=5),
    FilterCase(num_rows=6, vocab_size=1000),
    FilterCase(num_rows=12, vocab_size=9001, peak=12.0),
    FilterCase(num_rows=12, vocab_size=9001, peak=0.5),
)

# SmolLM2-135M on a CPU.
BENCHMARK_CPU = tuple(FilterCase(num_rows=n, vocab_size=49152) for n in (4, 64))

# Llama 3 on a GPU: at the usual settings, and where a row keeps most of its tokens.
BENCHMARK_GPU = tuple(FilterCase(num_rows=n, vocab_size=128256, peak=peak) for n in (4, 64) for peak in (12.0, 0.5))
