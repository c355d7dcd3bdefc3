/* Numbers as people read them. */
#ifndef CASTOR_CORE_UNITS_H
#define CASTOR_CORE_UNITS_H

/* Of bytes. */
static inline double mib(double bytes)
{
    return bytes / 1048576.0;
}

#endif
