"""Maps of many pictures: `preprocess` over folders, archives and films, in processes, resumable.

A job is a list of streams. A `source` gives a stream's pictures in a fixed order, a `sink` takes what was made of them
in that order, and knows which it has. Between them are stages: reading and the maps without weights (`Read`, in
processes), networks (`Networks`, here, in batches), encoding (`Encode`) and writing (`Keep`, in threads). What came of
a picture depends on nothing but the picture, the recipe and its neighbours in the batch, so an interrupted job that is
run again ends in the same bytes."""
