"""Row counts that steps are padded to."""


def padded_rows(num_rows: int) -> int:
    """Return the row count a step is padded to.

    Every new shape costs the CPU's kernel library memory that it keeps: exact sizes made a worker
    grow by 7 % over a thousand requests. Steps of 16 and fewer rows, where padding would cost most,
    stay as they are.
    """
    for limit, step in ((16, 1), (256, 8)):
        if num_rows <= limit:
            return -(-num_rows // step) * step
    return -(-num_rows // 64) * 64
