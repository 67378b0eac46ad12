"""Matrix algorithms of the compression passes: numpy in, numpy out, nothing known of graphs."""
