"""Control maps of many images: folders, archives, tables and videos, in several processes, resumable.

A job is a list of streams. The source of a stream yields images in a fixed order; its sink takes the results in that
order and knows which it has already. Between them are stages: reading and the maps without weights (`ReadStage`, in
processes), networks (`NetworkStage`, in batches), encoding (`EncodeStage`) and writing (`WriteStage`, in threads). A
result depends only on its image, on the recipe and on the other images of its batch, so a job that is interrupted and
run again ends in the same bytes.
"""
