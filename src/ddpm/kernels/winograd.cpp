// Winograd convolution of channels-last images (Lavin and Gray 2016, arXiv:1509.09308). It needs fewer multiplications
// than direct convolution: F(4x4, 3x3) four times, F(2x2, 3x3) 2.25 times fewer.
//
// The outputs are cut into tiles, each computed from a slightly larger tile of inputs. In a transformed domain with one
// point per input of a tile, the convolution is a matrix product (tiles, in channels) (in channels, out channels) at
// each point.
//
// y: (batch, height, width, channels out), x: (batch, height + H - 1 - 2 pad_y, width + W - 1 - 2 pad_x, channels in),
// weight: (out, H, W, in); intermediate values are float32. Channels are multiples of 16.

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16, ROWS = 8;
#else
constexpr int64_t LANES = 8, ROWS = 4;
#endif
constexpr int64_t COLUMNS = 2 * LANES;
constexpr int64_t PAGE = 2 * 1024 * 1024;
constexpr int64_t LINE = 32;          // floats, so that no two threads write to one cache line
constexpr int64_t CACHE = 48 * 1024;  // floats that fit a core's cache
// Power-of-two strides would share a few cache lines, so strides between points are longer by LANES.

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

struct bfloat16 {
    uint16_t bits;
};

inline vec& at(float* p) { return *(vec*)p; }
inline vec at(const float* p) { return *(const vec*)p; }
inline vec at(const bfloat16* p) { return (vec)(__builtin_convertvector(*(const halves*)p, words) << 16); }

inline void put(float* p, vec value) { *(vec*)p = value; }
inline void put(bfloat16* p, vec value) {  // to nearest, ties to even
    const words bits = (words)value, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *(halves*)p = __builtin_convertvector(value == value ? rounded : 0x7fc0 + (words){}, halves);
}

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Memory that a thread keeps for its next call, in large pages because the points' matrices spread over many small
// ones. It is allocated before the threads start, because they could not raise an error.
struct Buffer {
    float* data = nullptr;
    int64_t size = 0;
    float* of(int64_t wanted) {
        if (wanted > size) {
            std::free(data);
            size = 0;
            const int64_t pages = up(wanted, PAGE / 4);
            data = (float*)std::aligned_alloc(PAGE, 4 * pages);
            if (!data) throw std::bad_alloc();
            size = pages;
#ifdef MADV_HUGEPAGE
            madvise(data, 4 * size, MADV_HUGEPAGE);
#endif
        }
        return data;
    }
    ~Buffer() { std::free(data); }
};

thread_local Buffer buffer;

// out (ROWS, COLUMNS) = or += a (ROWS, depth) b (depth, COLUMNS); row and column are the strides of a.
template <bool add>
inline void product(const float* a, int64_t row, int64_t column, const float* b, int64_t b_row, float* out,
                    int64_t out_row, int64_t depth) {
    vec left[ROWS], right[ROWS];
#pragma GCC unroll 8
    for (int64_t m = 0; m < ROWS; m++) {
        left[m] = add ? at((const float*)out + m * out_row) : vec{};
        right[m] = add ? at((const float*)out + m * out_row + LANES) : vec{};
    }
    for (int64_t d = 0; d < depth; d++) {
        const vec b_left = at(b + d * b_row), b_right = at(b + d * b_row + LANES);
#pragma GCC unroll 8
        for (int64_t m = 0; m < ROWS; m++) {
            const float value = a[m * row + d * column];
            left[m] += value * b_left;
            right[m] += value * b_right;
        }
    }
#pragma GCC unroll 8
    for (int64_t m = 0; m < ROWS; m++) {
        at(out + m * out_row) = left[m];
        at(out + m * out_row + LANES) = right[m];
    }
}

// Calls f with 0, 1, ..., COUNT - 1 as constants.
template <int64_t... I, class F>
inline void each(std::integer_sequence<int64_t, I...>, F f) {
    (f(std::integral_constant<int64_t, I>{}), ...);
}
template <int64_t COUNT, class F>
inline void each(F f) {
    each(std::make_integer_sequence<int64_t, COUNT>{}, f);
}

constexpr double power(double p, int64_t k) { return k == 0 ? 1 : p * power(p, k - 1); }

// The 1D transforms from N inputs and R taps to M outputs: polynomials evaluated at 0, +-p for one or two p, and
// infinity. A transform reads vectors with stride s and writes vectors with stride r.
template <int64_t N_, int64_t R_>
struct Line {
    static constexpr int64_t N = N_, R = R_, M = N - R + 1, PAIRS = N / 2 - 1;
    // Roots of 1/2 and 2 cause smaller rounding errors than small integers.
    static constexpr double POINTS[2] = {N == 4 ? 1 : 0.70710678118654752, 1.41421356237309505};
    // The factor that `input` leaves out of the polynomial that is 1 at p and 0 at the other finite points.
    static constexpr double FACTORS[2] = {N == 4 ? 1. / 2 : -2. / 3, 1. / 6};

    static inline void input(const vec* d, int64_t s, vec* to, int64_t r) {  // B^T d
        if constexpr (N == 1) {
            to[0] = d[0];
        } else if constexpr (N == 4) {
            to[0] = d[0] - d[2 * s];
            to[r] = d[2 * s] + d[s];
            to[2 * r] = d[2 * s] - d[s];
            to[3 * r] = d[3 * s] - d[s];
        } else {
            constexpr float a = float(POINTS[0]), b = float(POINTS[1]);
            const vec even_a = d[4 * s] - 2.f * d[2 * s], odd_a = a * d[3 * s] - b * d[s];
            const vec even_b = d[4 * s] - 0.5f * d[2 * s], odd_b = b * d[3 * s] - a * d[s];
            to[0] = d[0] + d[4 * s] - 2.5f * d[2 * s];
            to[r] = even_a + odd_a;
            to[2 * r] = even_a - odd_a;
            to[3 * r] = even_b + odd_b;
            to[4 * r] = even_b - odd_b;
            to[5 * r] = d[s] + d[5 * s] - 2.5f * d[3 * s];
        }
    }
    static inline void output(const vec* m, int64_t s, vec* to, int64_t r) { collect<M, false>(m, s, to, r); }  // A^T m
    static inline void gradient(const vec* g, int64_t s, vec* to, int64_t r) { spread<M, false>(g, s, to, r); }  // A g
    static inline void weight(const vec* w, int64_t s, vec* to, int64_t r) { spread<R, true>(w, s, to, r); }     // G w
    static inline void weight_gradient(const vec* u, int64_t s, vec* to, int64_t r) {  // G^T u
        collect<R, true>(u, s, to, r);
    }

   private:
    template <bool scaled>
    static constexpr float coefficient(int64_t pair, int64_t k) {
        return float(power(POINTS[pair], k) * (scaled ? FACTORS[pair] : 1));
    }

    // Evaluates the polynomial with COUNT coefficients.
    template <int64_t COUNT, bool scaled>
    static inline void spread(const vec* from, int64_t s, vec* to, int64_t r) {
        to[0] = from[0];
        if constexpr (N > 1) {
            each<PAIRS>([&](auto pair) {
                vec even = coefficient<scaled>(pair, 0) * from[0], odd = {};
                each<COUNT - 1>([&](auto i) {
                    constexpr int64_t k = decltype(i)::value + 1;
                    constexpr float factor = coefficient<scaled>(decltype(pair)::value, k);
                    (k % 2 ? odd : even) += factor * from[k * s];
                });
                to[(2 * pair + 1) * r] = even + odd;
                to[(2 * pair + 2) * r] = even - odd;
            });
            to[(N - 1) * r] = from[(COUNT - 1) * s];
        }
    }

    // The transpose of `spread`.
    template <int64_t COUNT, bool scaled>
    static inline void collect(const vec* from, int64_t s, vec* to, int64_t r) {
        each<COUNT>([&](auto i) {
            constexpr int64_t k = decltype(i)::value;
            vec sum = k == 0 ? from[0] : vec{};
            if constexpr (N > 1) {
                each<PAIRS>([&](auto pair) {
                    constexpr float factor = coefficient<scaled>(decltype(pair)::value, k);
                    const vec plus = from[(2 * pair + 1) * s], minus = from[(2 * pair + 2) * s];
                    sum += factor * (k % 2 ? plus - minus : plus + minus);
                });
                if (k == COUNT - 1) sum += from[(N - 1) * s];
            }
            to[k * r] = sum;
        });
    }
};

// A kernel of H x W taps, split into pieces of Y::R x X::R taps, with the transforms Y along the height and X along the
// width.
template <int64_t H_, int64_t W_, class Y_, class X_>
struct Kernel {
    using Y = Y_;
    using X = X_;
    static constexpr int64_t H = H_, W = W_, POINTS = Y::N * X::N, OUTPUTS = Y::M * X::M, TAPS = Y::R * X::R;
    static constexpr int64_t COLUMNS = (W + X::R - 1) / X::R, PIECES = (H + Y::R - 1) / Y::R * COLUMNS;
    static int64_t y(int64_t piece) { return piece / COLUMNS * Y::R; }
    static int64_t x(int64_t piece) { return piece % COLUMNS * X::R; }
    // Index in the kernel of tap i of a piece, -1 if it is outside.
    static int64_t tap(int64_t piece, int64_t i) {
        const int64_t row = y(piece) + i / X::R, column = x(piece) + i % X::R;
        return row < H && column < W ? row * W + column : -1;
    }
};

template <int64_t M>
using Square = Kernel<3, 3, Line<M + 2, 3>, Line<M + 2, 3>>;

// Transforms a plane along both axes, (A, B) to (C, D).
template <int64_t A, int64_t B, int64_t C, int64_t D, class Vertical, class Horizontal>
inline void plane(Vertical vertical, Horizontal horizontal, const vec* from, vec* to) {
    vec half[C * B];
#pragma GCC unroll 6
    for (int64_t j = 0; j < B; j++) vertical(from + j, B, half + j, B);
#pragma GCC unroll 6
    for (int64_t i = 0; i < C; i++) horizontal(half + i * B, 1, to + i * D, 1);
}

struct Image {
    int64_t height, width;
    int64_t pixel(int64_t image, int64_t y, int64_t x) const { return (image * height + y) * width + x; }
    // Pointers to the pixels of a rectangle that starts at (y, x); zeros outside the image.
    template <int64_t ROWS, int64_t COLUMNS, class T>
    void around(const T* images, const T* zeros, int64_t image, int64_t y, int64_t x, int64_t channels,
                const T** to) const {
        const T* corner = images + pixel(image, y, x) * channels;
        const bool within = y >= 0 && x >= 0 && y + ROWS <= height && x + COLUMNS <= width;
        for (int64_t i = 0; i < ROWS; i++)
            for (int64_t j = 0; j < COLUMNS; j++)
                to[i * COLUMNS + j] =
                    within || (uint64_t(y + i) < uint64_t(height) && uint64_t(x + j) < uint64_t(width))
                        ? corner + (i * width + j) * channels
                        : zeros;
    }
};

// A batch: size of its outputs, and padding of its inputs.
struct Shape {
    int64_t batch, height, width, pad_y, pad_x;
    Image outputs() const { return {height, width}; }
    template <class K>
    Image inputs() const {
        return {height + K::H - 1 - 2 * pad_y, width + K::W - 1 - 2 * pad_x};
    }
};

// The tiles of a batch, by index.
template <class K>
struct Tiles {
    int64_t rows, columns, all;
    explicit Tiles(Shape n) : rows((n.height + K::Y::M - 1) / K::Y::M), columns((n.width + K::X::M - 1) / K::X::M) {
        all = n.batch * rows * columns;
    }
    int64_t image(int64_t tile) const { return tile / columns / rows; }
    int64_t y(int64_t tile) const { return tile / columns % rows * K::Y::M; }
    int64_t x(int64_t tile) const { return tile % columns * K::X::M; }
};

// Writes B^T d B of each tile and piece to v (points, tiles, stride); a row holds the channels of each piece.
template <class K, class T>
void transform_input(const T* x, const T* zeros, Shape n, int64_t channels, int64_t first, int64_t count, float* v,
                     int64_t stride, int64_t point) {
    constexpr int64_t rows = K::Y::N, columns = K::X::N;
    const Image in = n.inputs<K>();
    const Tiles<K> tiles(n);
    for (int64_t t = 0; t < count; t++)
        for (int64_t piece = 0; piece < K::PIECES; piece++) {
            const int64_t tile = first + t, image = tiles.image(tile);
            const int64_t y_0 = tiles.y(tile) + K::y(piece) - n.pad_y, x_0 = tiles.x(tile) + K::x(piece) - n.pad_x;
            const T* pixels[K::POINTS];
            in.around<rows, columns>(x, zeros, image, y_0, x_0, channels, pixels);
            for (int64_t c = 0; c < channels; c += LANES) {
                vec d[K::POINTS], found[K::POINTS];
#pragma GCC unroll 36
                for (int64_t i = 0; i < K::POINTS; i++) d[i] = at(pixels[i] + c);
                plane<rows, columns, rows, columns>(K::Y::input, K::X::input, d, found);
                float* to = v + t * stride + piece * channels + c;
#pragma GCC unroll 36
                for (int64_t i = 0; i < K::POINTS; i++) at(to + i * point) = found[i];
            }
        }
}

// Writes A^T m A + bias of each tile, from m (points, tiles, stride), for the first `some` channels, with a
// ReLU if rectified.
template <class K, class T, class W>
void transform_output(const float* m, const W* bias, Shape n, int64_t channels, int64_t some, int64_t first,
                      int64_t count, T* y, int64_t stride, int64_t point, bool rectified) {
    const Tiles<K> tiles(n);
    for (int64_t t = 0; t < count; t++) {
        const int64_t tile = first + t, y_0 = tiles.y(tile), x_0 = tiles.x(tile);
        const int64_t rows = std::min(K::Y::M, n.height - y_0), columns = std::min(K::X::M, n.width - x_0);
        T* corner = y + n.outputs().pixel(tiles.image(tile), y_0, x_0) * channels;
        for (int64_t c = 0; c < some; c += LANES) {
            vec d[K::POINTS], found[K::OUTPUTS];
            const float* from = m + t * stride + c;
#pragma GCC unroll 36
            for (int64_t i = 0; i < K::POINTS; i++) d[i] = at(from + i * point);
            plane<K::Y::N, K::X::N, K::Y::M, K::X::M>(K::Y::output, K::X::output, d, found);
            const vec start = bias ? at(bias + c) : vec{};
#pragma GCC unroll 4
            for (int64_t i = 0; i < K::Y::M; i++)
#pragma GCC unroll 4
                for (int64_t j = 0; j < K::X::M; j++)
                    if (i < rows && j < columns) {
                        const vec value = found[i * K::X::M + j] + start;
                        put(corner + (i * n.width + j) * channels + c, rectified && value < 0 ? vec{} : value);
                    }
        }
    }
}

// Writes A dy A^T of each tile to g (points, tiles, stride), and adds the sum of dy to d_bias.
template <class K, class T>
void transform_gradient(const T* dy, const T* zeros, Shape n, int64_t channels, int64_t first, int64_t count, float* g,
                        int64_t stride, int64_t point, float* d_bias) {
    const Tiles<K> tiles(n);
    for (int64_t t = 0; t < count; t++) {
        const int64_t tile = first + t;
        const T* pixels[K::OUTPUTS];
        n.outputs().around<K::Y::M, K::X::M>(dy, zeros, tiles.image(tile), tiles.y(tile), tiles.x(tile), channels,
                                             pixels);
        for (int64_t c = 0; c < channels; c += LANES) {
            vec d[K::OUTPUTS], found[K::POINTS], sum = at(d_bias + c);
#pragma GCC unroll 16
            for (int64_t i = 0; i < K::OUTPUTS; i++) sum += d[i] = at(pixels[i] + c);
            at(d_bias + c) = sum;
            plane<K::Y::M, K::X::M, K::Y::N, K::X::N>(K::Y::gradient, K::X::gradient, d, found);
            float* to = g + t * stride + c;
#pragma GCC unroll 36
            for (int64_t i = 0; i < K::POINTS; i++) at(to + i * point) = found[i];
        }
    }
}

// A panel of the transformed weights for COLUMNS out channels, u (points, pieces x in, COLUMNS); or, transposed, for
// COLUMNS in channels of the image gradient, (points, pieces x out, COLUMNS), from kernels rotated by 180 degrees.
template <class K, class W>
void weights(const W* weight, int64_t in, int64_t out, bool transposed, float* u, int64_t point, int64_t panel) {
    constexpr int64_t all = K::H * K::W;
    const int64_t rows = transposed ? out : in, columns = transposed ? in : out, depth = K::PIECES * rows;
    const int64_t begin = panel * COLUMNS, end = std::min(begin + COLUMNS, columns);
    if (end < begin + COLUMNS)
        for (int64_t i = 0; i < K::POINTS; i++) std::memset(u + i * point, 0, 4 * COLUMNS * depth);
    // Transforms the kernels at w, whose taps are `apart`, into the given row and the columns from k on.
    const auto filtered = [&](const auto* w, int64_t apart, int64_t row, int64_t k) {
        for (int64_t piece = 0; piece < K::PIECES; piece++) {
            vec taps[K::TAPS], found[K::POINTS];
            for (int64_t i = 0; i < K::TAPS; i++) {
                const int64_t tap = K::tap(piece, i);
                taps[i] = tap < 0 ? vec{} : at(w + (transposed ? all - 1 - tap : tap) * apart);
            }
            plane<K::Y::R, K::X::R, K::Y::N, K::X::N>(K::Y::weight, K::X::weight, taps, found);
            float* to = u + (piece * rows + row) * COLUMNS + k - begin;
            for (int64_t i = 0; i < K::POINTS; i++) at(to + i * point) = found[i];
        }
    };
    if (transposed) {
        for (int64_t k = 0; k < out; k++)
            for (int64_t c = begin; c < end; c += LANES) filtered(weight + k * all * in + c, in, k, c);
        return;
    }
    float block[LANES * all * COLUMNS] = {};  // (channels in, taps, channels out)
    for (int64_t c = 0; c < in; c += LANES) {
        for (int64_t k = begin; k < end; k++)
            for (int64_t i = 0; i < all; i++) {
                const vec found = at(weight + (k * all + i) * in + c);
                for (int64_t l = 0; l < LANES; l++) block[(l * all + i) * COLUMNS + k - begin] = found[l];
            }
        for (int64_t l = 0; l < LANES; l++)
            for (int64_t k = begin; k < end; k += LANES)
                filtered((const float*)block + l * all * COLUMNS + k - begin, COLUMNS, c + l, k);
    }
}

// m (points, tiles, width) = v (points, tiles, depth) u (points, width / COLUMNS, depth, COLUMNS).
template <class K>
void products(const float* v, int64_t v_point, const float* u, int64_t u_point, float* m, int64_t m_point,
              int64_t width, int64_t tiles, int64_t depth) {
    for (int64_t i = 0; i < K::POINTS; i++)
        for (int64_t c = 0; c < width; c += COLUMNS)
            for (int64_t t = 0; t < tiles; t += ROWS)
                product<false>(v + i * v_point + t * depth, depth, 1, u + i * u_point + c * depth, COLUMNS,
                               m + i * m_point + t * width + c, width, depth);
}

// With many tiles, each thread takes a few at a time through all steps, and all threads share the weight matrices. With
// few tiles, the matrices are larger: each thread makes and uses some panels of them, and all threads share the tiles.
template <class K, class T, class W>
void convolution(const void* x, const void* weight, const void* bias, void* y, Shape n, int64_t in, int64_t out,
                 bool transposed, bool rectified) {
    const int64_t rows = transposed ? out : in, columns = transposed ? in : out, depth = K::PIECES * rows;
    const int64_t padded = up(columns, COLUMNS), panels = padded / COLUMNS, total = Tiles<K>(n).all;
    const int64_t threads = omp_get_max_threads(), fair = up((total + threads - 1) / threads, ROWS);
    const bool few = 2 * total <= padded && panels >= threads;
    // Small blocks of tiles fit the cache; with larger blocks, matrices that do not fit are read less often.
    const int64_t near = std::max(CACHE / (K::POINTS * (depth + padded)), depth * padded / 4096);
    const int64_t count = few ? 64 : std::min(fair, std::clamp<int64_t>(near / ROWS * ROWS, ROWS, 256));
    const int64_t width = few ? COLUMNS : padded;  // columns per product
    const int64_t u_point = width * depth + LANES, v_point = (few ? up(total, ROWS) : count) * depth + LANES;
    const int64_t m_point = count * width + LANES, size = K::POINTS * (few ? v_point : u_point);
    const int64_t before = up(size + rows, LINE), part = up(K::POINTS * ((few ? u_point : v_point) + m_point), LINE);
    float* common = buffer.of(before + threads * part);
    const T* zeros = (T*)std::memset(common + size, 0, 4 * rows);
    const auto inputs = [&](int64_t first, int64_t tiles, float* v) {
        transform_input<K>((const T*)x, zeros, n, rows, first, tiles, v, depth, v_point);
    };
    const auto matrices = [&](int64_t panel, float* u) {
        weights<K>((const W*)weight, in, out, transposed, u, u_point, panel);
    };
    const auto outputs = [&](const float* v, const float* u, float* m, int64_t first, int64_t tiles, int64_t c) {
        products<K>(v, v_point, u, u_point, m, m_point, width, tiles, depth);
        transform_output<K>(m, bias ? (const W*)bias + c : nullptr, n, columns, std::min(width, columns - c), first,
                            tiles, (T*)y + c, width, m_point, rectified);
    };
#pragma omp parallel num_threads(threads)
    {
        float* mine = common + before + omp_get_thread_num() * part;
        float* m = mine + K::POINTS * (few ? u_point : v_point);
        if (few) {
#pragma omp for schedule(static)
            for (int64_t t = 0; t < total; t += ROWS) inputs(t, std::min(ROWS, total - t), common + t * depth);
#pragma omp for schedule(static)
            for (int64_t panel = 0; panel < panels; panel++) {
                matrices(panel, mine);
                for (int64_t t = 0; t < total; t += count)
                    outputs(common + t * depth, mine, m, t, std::min(count, total - t), panel * COLUMNS);
            }
        } else {
#pragma omp for schedule(static)
            for (int64_t panel = 0; panel < panels; panel++) matrices(panel, common + panel * COLUMNS * depth);
#pragma omp for schedule(static)
            for (int64_t t = 0; t < total; t += count) {
                const int64_t tiles = std::min(count, total - t);
                inputs(t, tiles, mine);
                outputs(mine, common, m, t, tiles, 0);
            }
        }
    }
}

// Writes G^T u G of one out channel and the first `some` in channels to d_weight (taps, in), where u is the sum of
// `parts` parts that are `apart` in memory.
template <class K>
void transform_weight_gradient(const float* u, int64_t point, int64_t parts, int64_t apart, int64_t some, int64_t in,
                               float* d_weight) {
    for (int64_t c = 0; c < some; c += LANES) {
        vec sum[K::POINTS] = {}, found[K::TAPS];
        for (int64_t s = 0; s < parts; s++)
            for (int64_t i = 0; i < K::POINTS; i++) sum[i] += at(u + s * apart + i * point + c);
        plane<K::Y::N, K::X::N, K::Y::R, K::X::R>(K::Y::weight_gradient, K::X::weight_gradient, sum, found);
        for (int64_t i = 0; i < K::TAPS; i++) at(d_weight + i * in + c) = found[i];
    }
}

// With many tiles, each thread sums some of them for all weights; with few, all of them for blocks of the weights.
template <class K, class T>
void weight_gradient(const void* x, const void* dy, float* d_weight, float* d_bias, Shape n, int64_t in, int64_t out) {
    static_assert(K::PIECES == 1);
    const int64_t padded = up(in, COLUMNS), total = Tiles<K>(n).all, threads = omp_get_max_threads();
    const int64_t block = std::min<int64_t>(out, 128);  // out channels per block
    const bool few = total <= std::min(in, out) && padded / COLUMNS * ((out + block - 1) / block) >= threads;
    const int64_t fair = (total + threads - 1) / threads;
    // Small blocks of tiles fit the cache; large ones read and write the sums less often.
    const int64_t count = few ? total : std::min(fair, std::max<int64_t>(32, padded * out / (padded + out) / 2));
    const int64_t v_row = padded + LANES, g_row = out + LANES;
    const int64_t v_point = count * v_row + LANES, g_point = count * g_row + LANES;
    const int64_t width = few ? COLUMNS : padded, u_point = (few ? block : out) * width + LANES;
    const int64_t u_size = K::POINTS * u_point, tiles_size = K::POINTS * (v_point + g_point);
    // A part: the sums of one thread, which are the bias gradients and, with many tiles, u.
    const int64_t part = (few ? 0 : u_size) + out, pixel = std::max(in, out);
    const int64_t before = up(threads * part + pixel + (few ? tiles_size : 0), LINE);
    const int64_t own = up(few ? u_size : tiles_size, LINE);
    float* parts = buffer.of(before + threads * own);
    float* rest = parts + threads * part;
    const T* zeros = (T*)std::memset(rest, 0, 4 * pixel);
#pragma omp parallel num_threads(threads)
    {
        float* mine = parts + before + omp_get_thread_num() * own;
        float* u = few ? mine : parts + omp_get_thread_num() * part;
        float* v = few ? rest + pixel : mine;
        float* g = v + K::POINTS * v_point;
        float* biases = (float*)std::memset(parts + (omp_get_thread_num() + 1) * part - out, 0, 4 * out);
        const auto transform = [&](int64_t first, int64_t tiles, int64_t to) {
            transform_input<K>((const T*)x, zeros, n, in, first, tiles, v + to * v_row, v_row, v_point);
            transform_gradient<K>((const T*)dy, zeros, n, out, first, tiles, g + to * g_row, g_row, g_point, biases);
        };
        const auto add = [&](auto sum, int64_t k, int64_t rows, int64_t c, int64_t tiles) {
            for (int64_t i = 0; i < K::POINTS; i++)
                for (int64_t column = 0; column < width; column += COLUMNS)
                    for (int64_t row = 0; row < rows; row += ROWS)
                        sum(g + i * g_point + k + row, 1, g_row, v + i * v_point + c + column, v_row,
                            u + i * u_point + row * width + column, width, tiles);
        };
        if (few) {
#pragma omp for schedule(static)
            for (int64_t t = 0; t < total; t++) transform(t, 1, t);
#pragma omp for schedule(static) collapse(2)
            for (int64_t c = 0; c < padded; c += COLUMNS)
                for (int64_t k = 0; k < out; k += block) {
                    const int64_t rows = std::min(block, out - k);
                    add(product<false>, k, rows, c, total);
                    for (int64_t row = 0; row < rows; row++)
                        transform_weight_gradient<K>(u + row * width, u_point, 1, 0, std::min(width, in - c), in,
                                                     d_weight + (k + row) * K::TAPS * in + c);
                }
        } else {
            auto sum = product<false>;
#pragma omp for schedule(static) nowait
            for (int64_t t = 0; t < total; t += count) {
                const int64_t tiles = std::min(count, total - t);
                transform(t, tiles, 0);
                add(sum, 0, out, 0, tiles);
                sum = product<true>;
            }
            if (sum == product<false>) std::memset(u, 0, 4 * u_size);  // this thread had no tiles
        }
#pragma omp barrier
        const int64_t team = omp_get_num_threads();
#pragma omp for schedule(static)
        for (int64_t k = 0; k < out; k++) {
            float bias = 0;
            for (int64_t s = 0; s < team; s++) bias += parts[(s + 1) * part - out + k];
            d_bias[k] = bias;
            if (!few)
                transform_weight_gradient<K>(parts + k * width, u_point, team, part, in, in,
                                             d_weight + k * K::TAPS * in);
        }
    }
}

// Kernel sizes that pay off only in float32.
auto others(int64_t H, int64_t W) {
    using None = Line<1, 1>;
    if (H == 5) return convolution<Kernel<5, 5, Line<6, 5>, Line<6, 5>>, float, float>;
    if (W == 7) return convolution<Kernel<1, 7, None, Line<6, 4>>, float, float>;
    if (H == 7) return convolution<Kernel<7, 1, Line<6, 4>, None>, float, float>;
    if (W == 3) return convolution<Kernel<1, 3, None, Line<6, 3>>, float, float>;
    return convolution<Kernel<3, 1, Line<6, 3>, None>, float, float>;
}

}  // namespace

extern "C" {

// Kernel arguments, in the order declared in Python.
struct Winograd {
    const void *x, *weight, *bias;
    void* y;
    int64_t kernel_height, kernel_width, tile, batch, height, width, c_in, c_out, pad_y, pad_x;
    bool half_images, half_weights, transposed, rectified;
};

struct WinogradWeightGradient {
    const void *x, *dy;
    float *d_weight, *d_bias;
    int64_t tile, batch, height, width, c_in, c_out, pad_y, pad_x;
    bool half_images;
};

// Both return 0, or 1 if their buffers cannot be allocated.

// y = the convolution of x, followed by a ReLU if rectified; or, if transposed, the image gradient of the convolution
// from its output gradient x. A tile has M outputs along each axis with more than one tap: M = 4 or 2 for 3x3 kernels,
// whose images, and weights and bias, are bfloat16 or float32; in float32 only, M = 2 for 5x5, 3 for 1x7 and 7x1, 4 for
// 1x3 and 3x1.
int winograd(const Winograd* a) try {
    const auto with = [&](auto run) {
        run(a->x, a->weight, a->bias, a->y, {a->batch, a->height, a->width, a->pad_y, a->pad_x}, a->c_in, a->c_out,
            a->transposed, a->rectified);
    };
    if (a->kernel_height != 3 || a->kernel_width != 3) {
        with(others(a->kernel_height, a->kernel_width));
        return 0;
    }
    const auto of = [&](auto image, auto number) {
        using T = decltype(image);
        using N = decltype(number);
        with(a->tile == 4 ? convolution<Square<4>, T, N> : convolution<Square<2>, T, N>);
    };
    const auto of_images = [&](auto number) { a->half_images ? of(bfloat16{}, number) : of(float{}, number); };
    a->half_weights ? of_images(bfloat16{}) : of_images(float{});
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

// The gradients of weight and bias for 3x3 kernels, in float32.
int winograd_weight_gradient(const WinogradWeightGradient* a) try {
    const auto of = [&](auto image) {
        using T = decltype(image);
        auto run = a->tile == 4 ? weight_gradient<Square<4>, T> : weight_gradient<Square<2>, T>;
        run(a->x, a->dy, a->d_weight, a->d_bias, {a->batch, a->height, a->width, a->pad_y, a->pad_x}, a->c_in,
            a->c_out);
    };
    a->half_images ? of(bfloat16{}) : of(float{});
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
}
