"""The same arithmetic, faster: each file gives the plain form of a function first, and then the fast ones.

Plain forms are a few lines that jax differentiates in every mode. Which form is used where (docs/performance.md says
what each gained when it was measured, and on which machine):

    function                CPU                            GPU                              TPU
    matmul                  tokens flattened, a gradient   axes flattened, so that the      plain
                            by hand                        library adds the bias
    attend                  blocks that the mask shows     cuDNN in 16 bits, else XLA       splash, else XLA
    attend, keys split      ring                           ring                             ring
    normalize               a gradient by hand from two numbers a row, everywhere
    token_nats              a gradient by hand from the logits, everywhere
    sum_over_positions      in parts of 8 MiB of logits    of 2 GiB                         of 256 MiB
    scans, rows_whole       a loop over layers             up to 24 layers unrolled         a loop over layers

`execution.kernels = "plain"` of a run, or `with plain_kernels():` around what is traced, turns all of them off.
"""
