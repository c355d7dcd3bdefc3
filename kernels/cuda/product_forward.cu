/* Products of a linear layer's forward: x (rows, k), w (cols, k). */
#include "kernels/cuda/product.cuh"

extern "C" int launch_product_forward(cudaStream_t s, enum product_epilogue epilogue,
                                      const struct product *p)
{
    using namespace product_tile;
    switch (epilogue) {
    case PRODUCT_PLAIN:
        return launch<PRODUCT_FORWARD, PRODUCT_PLAIN>(s, p);
    case PRODUCT_GELU:
        return launch<PRODUCT_FORWARD, PRODUCT_GELU>(s, p);
    default:
        return ERR_UNSUPPORTED;
    }
}

KERNELS_OF(product_forward,
           product_tile::product_kernel<product_tile::shape<PRODUCT_FORWARD>, PRODUCT_PLAIN>)
