"""A layer norm of rows, right in two ways, and its wrong twins: each has one fault.

All: y = (x - mean) * rsqrt(variance + eps) * w over rows of n elements; x, y: (rows, n), w: (n,);
sums in fp32, one rounding. A row is read in TILES tiles of BLOCK, of which the last ones may be
partly or entirely beyond its end. Grid: rows, if not said otherwise.
"""

import triton
import triton.language as tl

# The steps of a right one ------------------------------------------------------------------------


@triton.jit
def row_of(x, n):
    """Where the program's row begins."""
    return x + tl.program_id(0).to(tl.int64) * n


@triton.jit
def load_tile(x, at, n):
    """Elements `at` of the row x in fp32, 0 beyond its end."""
    return tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)


@triton.jit
def mean_of(x, n, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """The mean of the row x."""
    total = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(TILES):
        total += load_tile(x, i * BLOCK + tl.arange(0, BLOCK), n)
    return tl.sum(total) / n


@triton.jit
def moments_about(x, origin, n, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """The means of x - origin and of its square."""
    total = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(TILES):
        at = i * BLOCK + tl.arange(0, BLOCK)
        d = tl.where(at < n, load_tile(x, at, n) - origin, 0.0)
        total += d
        squares += d * d
    return tl.sum(total) / n, tl.sum(squares) / n


@triton.jit
def statistics(x, n, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """(mean, what its rounding lost, variance): two passes."""
    mean = mean_of(x, n, BLOCK, TILES)
    lost, square = moments_about(x, mean, n, BLOCK, TILES)
    return mean, lost, square - lost * lost


@triton.jit
def normalised(x, w, at, n, mean, lost, rstd):
    """The results of elements `at` of the row x."""
    return ((load_tile(x, at, n) - mean) - lost) * rstd * load_tile(w, at, n)


@triton.jit
def write(y, x, w, n, mean, lost, rstd, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """The results of the row x to the row y."""
    for i in tl.static_range(TILES):
        at = i * BLOCK + tl.arange(0, BLOCK)
        v = normalised(x, w, at, n, mean, lost, rstd)
        tl.store(y + at, v.to(y.dtype.element_ty), mask=at < n)


# One program a row -------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n"])
def right(y, x, w, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Right."""
    x = row_of(x, n)
    mean, lost, variance = statistics(x, n, BLOCK, TILES)
    write(row_of(y, n), x, w, n, mean, lost, tl.rsqrt(variance + eps), BLOCK, TILES)


@triton.jit(do_not_specialize=["n"])
def misses_the_tail(y, x, w, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Writes whole tiles only."""
    x = row_of(x, n)
    mean, lost, variance = statistics(x, n, BLOCK, TILES)
    rstd = tl.rsqrt(variance + eps)
    write(row_of(y, n), x, w, n // BLOCK * BLOCK, mean, lost, rstd, BLOCK, TILES)


@triton.jit(do_not_specialize=["n"])
def sums_no_tail(y, x, w, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Takes the statistics of whole tiles, and writes all."""
    x = row_of(x, n)
    mean, lost, variance = statistics(x, n // BLOCK * BLOCK, BLOCK, TILES)
    write(row_of(y, n), x, w, n, mean, lost, tl.rsqrt(variance + eps), BLOCK, TILES)


@triton.jit(do_not_specialize=["n"])
def miscounts_the_tail(y, x, w, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Sums n elements and divides by those of full tiles: right where they are the same."""
    x = row_of(x, n)
    mean, lost, variance = statistics(x, n, BLOCK, TILES)
    counted = (n + BLOCK - 1) // BLOCK * BLOCK
    variance = variance * n / counted
    write(row_of(y, n), x, w, n, mean, lost, tl.rsqrt(variance + eps), BLOCK, TILES)


@triton.jit(do_not_specialize=["n"])
def leaves_one_out(y, x, w, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Does not write element 7 of the first row."""
    x, y = row_of(x, n), row_of(y, n)
    mean, lost, variance = statistics(x, n, BLOCK, TILES)
    for i in tl.static_range(TILES):
        at = i * BLOCK + tl.arange(0, BLOCK)
        v = normalised(x, w, at, n, mean, lost, tl.rsqrt(variance + eps))
        place = tl.program_id(0) * n + at
        tl.store(y + at, v.to(y.dtype.element_ty), mask=(at < n) & (place != 7))


@triton.jit(do_not_specialize=["n"])
def reads_past_the_end(y, x, w, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Sums without a mask and multiplies what lies beyond the row by zero: right until that is
    no number."""
    x = row_of(x, n)
    total = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(TILES):
        at = i * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(x + at).to(tl.float32) * tl.where(at < n, 1.0, 0.0)
    mean = tl.sum(total) / n
    lost, square = moments_about(x, mean, n, BLOCK, TILES)
    rstd = tl.rsqrt(square - lost * lost + eps)
    write(row_of(y, n), x, w, n, mean, lost, rstd, BLOCK, TILES)


@triton.jit(do_not_specialize=["n"])
def writes_past_the_end(y, x, w, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Writes whole tiles, whatever lies behind the row."""
    x, y = row_of(x, n), row_of(y, n)
    mean, lost, variance = statistics(x, n, BLOCK, TILES)
    for i in tl.static_range(TILES):
        at = i * BLOCK + tl.arange(0, BLOCK)
        v = normalised(x, w, at, n, mean, lost, tl.rsqrt(variance + eps))
        tl.store(y + at, v.to(y.dtype.element_ty))


@triton.jit(do_not_specialize=["n"])
def ignores_eps(y, x, w, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Adds no eps."""
    x = row_of(x, n)
    mean, lost, variance = statistics(x, n, BLOCK, TILES)
    write(row_of(y, n), x, w, n, mean, lost, tl.rsqrt(variance), BLOCK, TILES)


@triton.jit(do_not_specialize=["n"])
def takes_another_eps(y, x, w, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Adds 1e-6, whatever eps is."""
    x = row_of(x, n)
    mean, lost, variance = statistics(x, n, BLOCK, TILES)
    write(row_of(y, n), x, w, n, mean, lost, tl.rsqrt(variance + 1e-6), BLOCK, TILES)


@triton.jit(do_not_specialize=["n"])
def cancels(y, x, w, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Takes E[x²] - mean² for the variance."""
    x = row_of(x, n)
    mean, square = moments_about(x, 0.0, n, BLOCK, TILES)
    rstd = tl.rsqrt(square - mean * mean + eps)
    write(row_of(y, n), x, w, n, mean, 0.0, rstd, BLOCK, TILES)


@triton.jit(do_not_specialize=["n"])
def sums_in_bf16(y, x, w, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Keeps its sums in bf16."""
    x = row_of(x, n)
    total = tl.zeros([], tl.float32)
    for i in tl.static_range(TILES):
        v = load_tile(x, i * BLOCK + tl.arange(0, BLOCK), n)
        total = (total + tl.sum(v)).to(tl.bfloat16).to(tl.float32)
    mean = total / n
    squares = tl.zeros([], tl.float32)
    for i in tl.static_range(TILES):
        at = i * BLOCK + tl.arange(0, BLOCK)
        d = tl.where(at < n, load_tile(x, at, n) - mean, 0.0)
        squares = (squares + tl.sum(d * d)).to(tl.bfloat16).to(tl.float32)
    write(row_of(y, n), x, w, n, mean, 0.0, tl.rsqrt(squares / n + eps), BLOCK, TILES)


@triton.jit(do_not_specialize=["n"])
def squares_in_fp16(y, x, w, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Squares in fp16: precise enough for bf16, until a square exceeds 65504."""
    x = row_of(x, n)
    mean = mean_of(x, n, BLOCK, TILES)
    squares = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(TILES):
        at = i * BLOCK + tl.arange(0, BLOCK)
        d = tl.where(at < n, load_tile(x, at, n) - mean, 0.0).to(tl.float16)
        squares += (d * d).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(squares) / n + eps)
    write(row_of(y, n), x, w, n, mean, 0.0, rstd, BLOCK, TILES)


@triton.jit(do_not_specialize=["n"])
def drops_nan(y, x, w, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Takes a NaN for 0."""
    x, y = row_of(x, n), row_of(y, n)
    total = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(TILES):
        v = load_tile(x, i * BLOCK + tl.arange(0, BLOCK), n)
        total += tl.where(v == v, v, 0.0)  # noqa: PLR0124  (a NaN is not equal to itself)
    mean = tl.sum(total) / n
    squares = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(TILES):
        at = i * BLOCK + tl.arange(0, BLOCK)
        v = load_tile(x, at, n)
        d = tl.where(at < n, tl.where(v == v, v, 0.0) - mean, 0.0)  # noqa: PLR0124
        squares += d * d
    rstd = tl.rsqrt(tl.sum(squares) / n + eps)
    for i in tl.static_range(TILES):
        at = i * BLOCK + tl.arange(0, BLOCK)
        v = load_tile(x, at, n)
        v = (tl.where(v == v, v, 0.0) - mean) * rstd * load_tile(w, at, n)  # noqa: PLR0124
        tl.store(y + at, v.to(y.dtype.element_ty), mask=at < n)


@triton.jit(do_not_specialize=["n"])
def writes_to_its_input(y, x, w, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Leaves x - mean in x."""
    x, y = row_of(x, n), row_of(y, n)
    mean, lost, variance = statistics(x, n, BLOCK, TILES)
    for i in tl.static_range(TILES):
        at = i * BLOCK + tl.arange(0, BLOCK)
        d = (load_tile(x, at, n) - mean) - lost
        tl.store(x + at, d.to(x.dtype.element_ty), mask=at < n)
        v = d * tl.rsqrt(variance + eps) * load_tile(w, at, n)
        tl.store(y + at, v.to(y.dtype.element_ty), mask=at < n)


@triton.jit(do_not_specialize=["n"])
def adds_to_its_output(y, x, w, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Counts on zeros in y."""
    x, y = row_of(x, n), row_of(y, n)
    mean, lost, variance = statistics(x, n, BLOCK, TILES)
    for i in tl.static_range(TILES):
        at = i * BLOCK + tl.arange(0, BLOCK)
        v = normalised(x, w, at, n, mean, lost, tl.rsqrt(variance + eps))
        v += load_tile(y, at, n)
        tl.store(y + at, v.to(y.dtype.element_ty), mask=at < n)


# One program a tile: the parts of a row meet in ws, fp32[rows, 1 + TILES]: mean, then squares -----


@triton.jit
def parts_of(ws, row, TILES: tl.constexpr):
    """Where the mean of a row lies; its squares follow."""
    return ws + row.to(tl.int64) * (1 + TILES)


@triton.jit(do_not_specialize=["n"])
def store_means(ws, x, n, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """The first launch: the mean of each row, and zeros to add to. Grid: rows."""
    mean_at = parts_of(ws, tl.program_id(0), TILES)
    tl.store(mean_at, mean_of(row_of(x, n), n, BLOCK, TILES))
    for i in tl.static_range(TILES):
        tl.store(mean_at + 1 + i, 0.0)


@triton.jit
def squares_of(x, mean, i, n, BLOCK: tl.constexpr):
    """The sum of (x - mean)² over tile i of the row x."""
    at = i * BLOCK + tl.arange(0, BLOCK)
    d = tl.where(at < n, load_tile(x, at, n) - mean, 0.0)
    return tl.sum(d * d)


@triton.jit(do_not_specialize=["n"])
def store_squares(ws, x, n, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """The second launch: each program has a place of its own. Grid: rows * TILES."""
    row = tl.program_id(0) // TILES
    i = tl.program_id(0) % TILES
    mean_at = parts_of(ws, row, TILES)
    squares = squares_of(x + row.to(tl.int64) * n, tl.load(mean_at), i, n, BLOCK)
    tl.store(mean_at + 1 + i, squares)


@triton.jit(do_not_specialize=["n"])
def add_squares(ws, x, n, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """As store_squares, but all programs of a row add to one place: one sum overwrites another."""
    row = tl.program_id(0) // TILES
    i = tl.program_id(0) % TILES
    mean_at = parts_of(ws, row, TILES)
    squares = squares_of(x + row.to(tl.int64) * n, tl.load(mean_at), i, n, BLOCK)
    tl.store(mean_at + 1, tl.load(mean_at + 1) + squares)


@triton.jit(do_not_specialize=["n"])
def add_squares_atomically(ws, x, n, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """As add_squares, losing nothing; the order, and with it the last bit, is left to chance."""
    row = tl.program_id(0) // TILES
    i = tl.program_id(0) % TILES
    mean_at = parts_of(ws, row, TILES)
    squares = squares_of(x + row.to(tl.int64) * n, tl.load(mean_at), i, n, BLOCK)
    tl.atomic_add(mean_at + 1, squares)


@triton.jit
def apply_tile(y, x, w, mean_at, row, i, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Join the parts of a row in their order and write tile i of it."""
    squares = tl.zeros([], tl.float32)
    for part in tl.static_range(TILES):
        squares += tl.load(mean_at + 1 + part)
    begin = row.to(tl.int64) * n
    at = i * BLOCK + tl.arange(0, BLOCK)
    rstd = tl.rsqrt(squares / n + eps)
    v = normalised(x + begin, w, at, n, tl.load(mean_at), 0.0, rstd)
    tl.store(y + begin + at, v.to(y.dtype.element_ty), mask=at < n)


@triton.jit(do_not_specialize=["n"])
def apply_parts(y, x, w, ws, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """The third launch, and the last. Grid: rows * TILES."""
    row = tl.program_id(0) // TILES
    mean_at = parts_of(ws, row, TILES)
    apply_tile(y, x, w, mean_at, row, tl.program_id(0) % TILES, n, eps, BLOCK, TILES)


@triton.jit(do_not_specialize=["n"])
def apply_without_waiting(y, x, w, ws, n, eps, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Second and third launch in one, with nothing between storing a part and reading the others'.

    Grid: rows * TILES.
    """
    row = tl.program_id(0) // TILES
    i = tl.program_id(0) % TILES
    mean_at = parts_of(ws, row, TILES)
    squares = squares_of(x + row.to(tl.int64) * n, tl.load(mean_at), i, n, BLOCK)
    tl.store(mean_at + 1 + i, squares)
    apply_tile(y, x, w, mean_at, row, i, n, eps, BLOCK, TILES)


# Of the op `hazard`: to be launched only where a process may be lost ------------------------------


@triton.jit(do_not_specialize=["n"])
def doubles(y, x, n, BLOCK: tl.constexpr):
    """y = 2 * x. Right."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n) * 2, mask=at < n)


@triton.jit(do_not_specialize=["n"])
def hangs(y, x, flag, n, BLOCK: tl.constexpr):
    """As `doubles`, once somebody sets the flag, which nobody does."""
    while tl.atomic_add(flag, 0, sem="acquire", scope="gpu") == 0:
        pass
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n) * 2, mask=at < n)


@triton.jit(do_not_specialize=["n"])
def crashes(y, x, n, FAR: tl.constexpr, BLOCK: tl.constexpr):
    """As `doubles`, but written FAR elements behind y, where there is no memory."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + FAR + at, tl.load(x + at, mask=at < n) * 2, mask=at < n)
